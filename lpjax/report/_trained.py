"""What trained a compressed checkpoint further: the files that `lpjax recover` and `lpjax finetune` leave beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpjax.report._record import RECORD, Record, record_text

RECOVERED, TUNED = "recover.json", "finetune.json"
_SINCE = "Goals and bounds of layers are of the net before that, which the solvers made."


def training_files(folder: str | Path | None) -> dict[str, str]:
    """Those of a folder, name -> text, for the folder of a net that is made of it."""
    if folder is None:
        return {}
    paths = [Path(folder) / name for name in (RECOVERED, TUNED)]
    return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()}


def history_files(folder: str | Path | None, record: Record) -> dict[str, str]:
    """Those, and the record of how the net became smaller where config.json and the weights do not tell as much."""
    return training_files(folder) | ({RECORD: record_text(record)} if record.complete else {})


def earlier_recovery(files: Mapping[str, str]) -> Any:
    """What the last `lpjax recover` told, of `training_files`, for the next to tell with its own; None without one."""
    text = files.get(RECOVERED)
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def training_notes(folder: str | Path) -> list[str]:
    """A sentence of each, for readers who count on a net as the solvers left it."""
    notes = []
    for name, text in training_files(folder).items():
        try:
            told = json.loads(text)
            notes.append(_recovered(told) if name == RECOVERED else _tuned(told))
        except (ValueError, LookupError, TypeError, AttributeError):
            notes.append(f"Trained after it was compressed; {name}, which tells how, can't be read.")
    return notes


def _recovered(told: Mapping[str, Any]) -> str:
    runs = [told]
    while isinstance(earlier := runs[-1].get("earlier"), Mapping) and len(runs) < 100:
        runs.append(earlier)
    last = f", the last of {len(runs)} runs" if len(runs) > 1 else ""
    start, best = told["curve"][0], told["best"]
    if best["step"] == 0:
        return f"lpjax recover made it no better, and left it as it was (divergence {start['divergence']:.4g})."
    return (
        f"Trained after it was compressed, without labels, on {told['texts']:,} texts, by {best['step']:,} updates: "
        f"divergence from the dense net {start['divergence']:.4g} → {best['divergence']:.4g} on {told['held_out']:,} "
        f"texts that were held out ({RECOVERED}{last}). {_SINCE}"
    )


def _tuned(told: Mapping[str, Any]) -> str:
    best = told["best"]
    return (
        f"Trained after it was compressed, with labels, on {told['train']['rows']:,} examples of {told['task']}, by "
        f"{best['step']:,} updates ({TUNED}). {_SINCE}"
    )
