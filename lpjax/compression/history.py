"""The training of a compressed checkpoint: the files that `lpjax recover` and `lpjax finetune` write beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from lpjax._files.json import RECORD_LIMIT, Count, RecordError, Text, as_type, json_text, parse_object, read_object
from lpjax._files.reading import read_bytes
from lpjax._provenance import run_record
from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.links import check_inside
from lpjax.compression.record import RECORD, Record, record_of, record_text, steps_document

RECOVERED, TUNED = "recover.json", "finetune.json"
EXPORTED, EXPORT_SCHEMA = "lpjax_export.json", "lpjax-export/1"
_NO_METRICS = ("step", "epoch", "loss", "learning_rate")
_SINCE = "Errors and bounds of layers are those of the model before this training."


def training_files(folder: str | Path | None) -> dict[str, str]:
    """The training files in a folder, name -> text, to be copied beside a model made from it.

    Raises:
        RecordError: one is not a regular file, or too large.
        CheckpointError: one is a link that leads out of the folder.
    """
    if folder is None:
        return {}
    texts = {}
    for path in (Path(folder) / name for name in (RECOVERED, TUNED)):
        if path.exists():
            check_inside(path, Path(folder))
            try:
                texts[path.name] = read_bytes(path, RECORD_LIMIT).decode("utf-8", "replace")
            except (OSError, ValueError) as error:
                raise RecordError(f"{path} can't be read: {error}; remove it to continue without it") from None
    return texts


def history_files(folder: str | Path | None, record: Record) -> dict[str, str]:
    """`training_files`, and the record of compression if it is complete."""
    return training_files(folder) | ({RECORD: record_text(record)} if record.complete else {})


def tuning_history(checkpoint: Checkpoint) -> dict[str, str]:
    """How a compressed checkpoint was made, for the folder of a model tuned from it; nothing for a dense one.

    Raises:
        RecordError: its record or one of its `training_files` is damaged.
    """
    if checkpoint.compression is None:
        return {}
    return training_files(checkpoint.source) | {RECORD: record_text(record_of(checkpoint))}


def export_files(checkpoint: Checkpoint, model: str) -> dict[str, str]:
    """The files that say how a dense export of `checkpoint`, called `model`, was made, name -> text.

    Raises:
        RecordError: its record or one of its `training_files` is damaged.
    """
    record = record_of(checkpoint)
    ranks = {path: layer.rank for path, (_, layer) in record.layers.items() if layer.rank is not None}
    document = {"schema": EXPORT_SCHEMA, "model": model, "ranks": ranks, "steps": steps_document(record)}
    return training_files(checkpoint.source) | {EXPORTED: json_text(document | run_record(None))}


def require_compressed(record: Record, folder: str | Path) -> None:
    """Refuse a dense checkpoint.

    Args:
        record: record of the checkpoint.
        folder: folder of the checkpoint, for the message.

    Raises:
        ValueError: the record has no step; a dense export's source is named.
    """
    if not record.steps:
        raise ValueError(
            f"{folder} is a dense checkpoint; expected one that `lpjax compress` wrote{_export_note(folder)}"
        )


def _export_note(folder: str | Path) -> str:
    """The source of a dense export, as the end of a sentence; empty if the folder is not one."""
    path = Path(folder) / EXPORTED
    if not path.exists():
        return ""
    try:
        export = as_type(read_object(path, schema=EXPORT_SCHEMA), _Export, str(path))
        return f"; it is the dense export of {export.model}"
    except RecordError:
        return f"; it is a dense export, whose {path.name} is damaged"


def earlier_recovery(files: Mapping[str, str]) -> Any:
    """The content of the last recover.json among `training_files`, to be kept in the next one; None without one.

    Raises:
        RecordError: it is not a JSON object.
    """
    if RECOVERED not in files:
        return None
    try:
        return parse_object(files[RECOVERED], RECOVERED)
    except RecordError as error:
        raise RecordError(f"{error}; remove it to continue without the history of earlier training") from None


def training_notes(folder: str | Path) -> list[str]:
    """A sentence about each training file, for readers who expect the model as the solvers made it."""
    notes = []
    for name, kind in ((RECOVERED, _Recovery), (TUNED, _Tuning)):
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            notes.append(as_type(read_object(path), kind, str(path)).note())
        except RecordError:
            notes.append(f"Trained after it was compressed; {name}, which says how, can't be read.")
    return notes


def training_scores(folder: Path) -> dict[str, str]:
    """name -> the measured scores, as a sentence, of each training file in a folder."""
    scores = {}
    for name, kind in ((RECOVERED, _Recovery), (TUNED, _Scores)):
        if (folder / name).exists():
            try:
                scores[name] = as_type(read_object(folder / name), kind, name).scores()
            except RecordError:
                scores[name] = f"{name}, which says how it was trained, can't be read."
    return scores


class _Export(msgspec.Struct):
    model: Text


class _Best(msgspec.Struct):
    step: Count


class _Rows(msgspec.Struct):
    rows: Count


_Word = Annotated[str, msgspec.Meta(pattern=r"^[\w.-]{1,60}\Z")]


class _Split(msgspec.Struct):
    rows: Count
    split: _Word


class _Scores(msgspec.Struct):
    """The part of finetune.json that a model card uses."""

    best: dict[_Word, float | None]
    train: _Rows
    dev: _Split
    task: _Word

    def scores(self) -> str:
        """What was measured."""
        metrics = [(name, value) for name, value in self.best.items() if name not in _NO_METRICS and value is not None]
        listed = ", ".join(f"{name} {value:.4f}" for name, value in metrics)
        return (
            f"Fine-tuned on {self.train.rows:,} examples of {self.task}. On {self.dev.rows:,} examples of its split "
            f"{self.dev.split}, by which the best weights were chosen: {listed}."
        )


class _Divergence(msgspec.Struct):
    step: Count
    divergence: float


class _Recovery(msgspec.Struct):
    """The part of recover.json that is read."""

    best: _Divergence
    curve: Annotated[tuple[_Divergence, ...], msgspec.Meta(min_length=1)]
    texts: Count
    held_out: Count
    earlier: dict[str, Any] | None = None

    def note(self) -> str:
        """A sentence about it."""
        runs, earlier = 1, self.earlier
        while isinstance(earlier, dict) and runs < 100:
            runs, earlier = runs + 1, earlier.get("earlier")
        last = f", the last of {runs} runs" if runs > 1 else ""
        start, best = self.curve[0].divergence, self.best.divergence
        if self.best.step == 0:
            return f"lpjax recover did not improve it, and left it as it was (divergence {start:.4g})."
        return (
            f"Trained after it was compressed, without labels, on {self.texts:,} texts, by {self.best.step:,} updates: "
            f"divergence from the dense model {start:.4g} → {best:.4g} on {self.held_out:,} "
            f"texts that were held out ({RECOVERED}{last}). {_SINCE}"
        )

    def scores(self) -> str:
        """What was measured."""
        return (
            f"Trained without labels on {self.texts:,} texts. On {self.held_out:,} texts that were held out, the "
            f"divergence from the dense model is {self.best.divergence:.4g}; before the training it was "
            f"{self.curve[0].divergence:.4g}."
        )


class _Tuning(msgspec.Struct):
    """The part of finetune.json that is read."""

    best: _Best
    train: _Rows
    task: Text

    def note(self) -> str:
        """A sentence about it."""
        return (
            f"Trained after it was compressed, with labels, on {self.train.rows:,} examples of {self.task}, by "
            f"{self.best.step:,} updates ({TUNED}). {_SINCE}"
        )
