"""The model card of a folder that lpjax writes: what was done, what it costs, and how to load the result.

A card depends only on the checkpoint and the folder's files, not on time, place or machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpjax._files.json import RecordError, exponent_of
from lpjax._provenance import method_label
from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.cards import MARKER, SOURCE_CARD
from lpjax.checkpoint.files import read_object
from lpjax.checkpoint.formats import BLOCK, CONFIG
from lpjax.checkpoint.int8 import FACTORS
from lpjax.compression.history import EXPORTED, RECOVERED, TUNED, training_scores
from lpjax.compression.record import RECORD, Record, read_record, record_of
from lpjax.compression.weights_only import CompressedWeights
from lpjax.hub._loading import loading, runtime_of
from lpjax.hub._source import Source, read_source
from lpjax.models import name_table
from lpjax.models.names import head_named
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized

_PIPELINES = {
    "sequence": "text-classification",
    "tokens": "token-classification",
    "spans": "question-answering",
    "words": "fill-mask",
}
_SOURCE = ("## Source", f"[{SOURCE_CARD}]({SOURCE_CARD}) is the card of the model that this one was made from.")


class _Matrix(NamedTuple):
    """A weight: its name without the layer number, how it is stored, and its size in bytes. `form` is "" if dense."""

    kind: str
    method: str
    form: str
    rank: int | None
    size: int
    before: int
    after: int
    error: float


def card_text(folder: Path, checkpoint: Checkpoint, size: int, stored: Mapping[str, int] | None = None) -> str:
    """The card of a folder, whose other files are already written.

    Args:
        folder: the folder.
        checkpoint: the checkpoint in it; for an export, the exported checkpoint.
        size: size of the weights or the program, in bytes.
        stored: size of each weight there, in bytes, by path; None if all are dense.
    """
    config, source = read_object(folder / CONFIG), read_source(checkpoint.source)
    record, scores = _record(folder, checkpoint), training_scores(folder)
    matrices = [*_matrices(checkpoint, config, stored, {} if scores else record.layers)]
    forms = {matrix.form for matrix in matrices} - {""}
    old = {name for name in (RECOVERED, TUNED) if _is_old(folder / name, checkpoint.source)}
    facts = _Facts(
        source=source,
        runtime=runtime_of(folder),
        head=head_named(config.get("architectures")),
        model_type=checkpoint.config.model_type,
        tuned=(folder / TUNED).exists() and TUNED not in old,
        forms=frozenset(forms),
        expanded=stored is None,
    )
    known = record.steps[0].bytes_before if record.steps else None
    before = known or sum(matrix.before for matrix in matrices) + checkpoint.extra_bytes
    sentences = facts.head is None and (folder / "modules.json").exists()
    parts = [f"# {_title(facts)}", _lead(facts, size, before)]
    if forms:
        parts += ["## What was done", _table(matrices, stored is not None), *_notes(folder, record, matrices)]
    if scores:
        late = ["Steps after the training are not in these numbers."] if old else []
        parts += ["## Measured", *scores.values(), *late]
    parts += ["## Load", *loading(folder, facts.head, facts.model_type)]
    return _with_metadata(folder, _metadata(facts, sentences), parts)


class _Facts(NamedTuple):
    """What a card says of a folder in more than one place.

    Attributes:
        source: what is known of the model that this one was made from.
        runtime: "onnx" or "stablehlo" for an exported program, else None.
        head: the model's head, or None.
        model_type: the kind of model, as in config.json.
        tuned: whether the last step was fine-tuning.
        forms: how the weights that are not dense are stored; for an exported program, how they were.
        expanded: whether all weights are dense in the folder.
    """

    source: Source
    runtime: str | None
    head: str | None
    model_type: str
    tuned: bool
    forms: frozenset[str]
    expanded: bool

    @property
    def relation(self) -> str | None:
        """How this model relates to its base, in the hub's words."""
        return "finetune" if self.tuned else self.source.relation or ("quantized" if self.forms else None)


def _metadata(facts: _Facts, sentences: bool) -> dict[str, Any]:
    """The metadata that the hub reads; `sentences`: sentence-transformers loads the folder."""
    source = facts.source
    pipeline = _PIPELINES.get(facts.head or "", "sentence-similarity" if sentences else "feature-extraction")
    library = "sentence-transformers" if sentences else "transformers"
    tags = {
        "low-rank": any(form.startswith("factors") for form in facts.forms),
        "quantized": any("codes" in form or "8 bits" in form for form in facts.forms),
        "custom_code": bool(facts.forms) and not facts.expanded and facts.runtime is None,
    }
    return source.kept | {
        "base_model": source.base_model,
        "base_model_relation": facts.relation if source.base_model else None,
        "library_name": {"onnx": "onnx", "stablehlo": "jax"}.get(facts.runtime or "", library),
        "pipeline_tag": pipeline if facts.tuned else source.pipeline_tag or pipeline,
        "tags": ["lpjax", *(tag for tag, holds in tags.items() if holds)],
    }


def _title(facts: _Facts) -> str:
    return ", ".join(
        [
            facts.source.name.rpartition("/")[2] if facts.source.name else f"A {facts.model_type} model",
            *(["fine-tuned"] if facts.relation == "finetune" else []),
            *(["compressed"] if facts.forms else []),
            *([{"onnx": "for ONNX", "stablehlo": "as StableHLO"}[facts.runtime]] if facts.runtime else []),
        ]
    )


def _lead(facts: _Facts, size: int, before: int) -> str:
    """The first paragraph: the model, and its size in bytes now and before."""
    tuned = "a fine-tuned " if facts.relation == "finetune" else ""
    model = f"{tuned}`{facts.source.name}`" if facts.source.name else f"a `{facts.model_type}` model"
    lead = f"This is {model}, {'compressed' if facts.forms else 'saved'} by lpjax. Its weights take {_mb(size)} MB"
    if not facts.forms:
        return f"{lead}."
    if facts.expanded:
        return f"{lead}. They are expanded, so that other libraries read them, and no longer smaller."
    return f"{lead}; dense they take {_mb(before)} MB."


def _with_metadata(folder: Path, metadata: Mapping[str, Any], parts: Iterable[str]) -> str:
    """The text of a card, which ends with a link to the source's card if the folder has that."""
    from huggingface_hub import ModelCardData  # late: it is slow

    source = _SOURCE if (folder / SOURCE_CARD).exists() else ()
    body = "\n\n".join([MARKER, *parts, *source])
    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{body}\n"


def _code(name: str) -> str:
    """A name from an untrusted file as code in a table cell, without characters that would end the code or the cell."""
    return f"`{re.sub(r'[`|<>]|[^ -~]', '·', name)}`"


def weights_card(folder: Path, source: Path, made: CompressedWeights) -> str:
    """The card of a folder that `compress_weights` wrote.

    Args:
        folder: the folder; its other files are already written.
        source: folder of the source model.
        made: the result of the compression.
    """
    known = read_source(source)
    metadata = known.kept | {
        "base_model": known.base_model,
        "base_model_relation": (known.relation or "quantized") if known.base_model else None,
        "pipeline_tag": known.pipeline_tag,
        "tags": ["lpjax", "low-rank"],
    }
    method = method_label(made.method, made.p)
    rows = [
        [_code(kind.name), str(kind.count), "×".join(map(str, kind.shape)), str(kind.rank),
         _mb(kind.bytes_before), _mb(kind.bytes_after),
         "–".join(dict.fromkeys(f"{error:.3f}" for error in kind.errors))]
        for kind in made.kinds if kind.rank is not None
    ]  # fmt: skip
    parts = [
        f"# {known.name.rpartition('/')[2] if known.name else 'A model'}, compressed",
        f"This is {f'`{known.name}`' if known.name else 'a model'}, its matrices factored by lpjax ({method}), by the "
        f"weights alone. Its weights take {_mb(made.bytes_after)} MB as factors; dense they take "
        f"{_mb(made.bytes_before)} MB.",
        "The files in the root are the factors multiplied out: other libraries load them as they load the source, and "
        "they are no smaller. Those in `factors` hold `N.left` and `N.right` in the place of a matrix N, whose product "
        "it is. What the model has lost was not measured.",
        "## What was done",
        _markdown(["matrix", "count", "shape", "rank", "MB before", "MB after", "error"], rows),
    ]
    return _with_metadata(folder, metadata, parts)


def _is_old(path: Path, source: Path | None) -> bool:
    """Whether a record of training is copied from the source, so it precedes this step."""
    other = None if source is None else source / path.name
    return other is not None and other.is_file() and path.exists() and other.read_bytes() == path.read_bytes()


def _matrices(
    checkpoint: Checkpoint, config: Mapping[str, Any], stored: Mapping[str, int] | None, layers: Mapping[str, Any]
) -> Iterator[_Matrix]:
    """Every weight of the folder; `layers`, as in `Record.layers`, has their errors."""
    block = checkpoint.compression or {}
    steps = [step for step in _listed(block.get("steps")) if isinstance(step, dict)]
    methods = {str(path): _method(step) for step in steps for path in _listed(step.get("paths"))}
    int8 = (config.get(BLOCK) or {}).get(FACTORS) is not None
    table = name_table(checkpoint.config)
    names = {path: name for _, name, path in table.located(table.prefix in checkpoint.params)}
    leaves = dict(walk(checkpoint.params))
    # Dense weights may have been rounded to a narrower dtype, so the widest one counts as the original.
    width = max(np.dtype(leaf.dtype).itemsize for leaf in leaves.values())
    for path in names:
        if path not in (leaves if stored is None else stored):  # a program leaves out what it does not read
            continue
        leaf = leaves[path]
        size, form = math.prod(leaf.shape), _form(leaf, int8)
        before = size * width
        method = (methods.get(path) or _method(block)) if form else ""
        layer = layers[path][1] if path in layers and form else None
        error = math.nan if layer is None else layer.error_weighted or layer.error_entries
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", names[path])
        rank = leaf.rank if form.startswith("factors") else None
        yield _Matrix(kind, method, form, rank, size, before, before if stored is None else stored[path], error)


def _record(folder: Path, checkpoint: Checkpoint) -> Record:
    """The record of the weights in a folder; without steps if there is none, or a damaged one."""
    try:
        if (folder / RECORD).exists():
            return read_record(folder / RECORD)
        return record_of(checkpoint) if (folder / EXPORTED).exists() else Record(())
    except RecordError:
        return Record(())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _method(step: Mapping[str, Any]) -> str:
    """The method of a step in config.json, which is not trusted."""
    return method_label(_word(step.get("method") or "unknown"), exponent_of(step.get("p")))


def _word(text: object) -> str:
    """`text` without characters that Markdown interprets."""
    return re.sub(r"[^\w.+-]", "", str(text))[:40]


def _form(leaf: Any, int8: bool) -> str:
    if isinstance(leaf, LowRank):
        coded = isinstance(leaf.left, Quantized)
        if coded and leaf.rank >= min(leaf.shape):  # the right factor is a rotation
            return "rotated codes"
        kind = " of codes" if coded else " in 8 bits" if int8 else ""
        return f"factors{kind}{'' if leaf.sparse is None else ' and single entries'}"
    return "codes" if isinstance(leaf, Quantized) else ""


def _table(matrices: Iterable[_Matrix], kept: bool) -> str:
    """A row for each kind of matrix; empty columns are left out."""
    groups: dict[tuple[str, ...], list[_Matrix]] = {}
    for matrix in sorted(matrices, key=lambda matrix: not matrix.form):
        groups.setdefault(matrix[:3] if matrix.form else ("", "", ""), []).append(matrix)
    rows = []
    for (kind, method, form), own in groups.items():
        before, after, size = (sum(getattr(matrix, name) for matrix in own) for name in ("before", "after", "size"))
        ranks = sorted(matrix.rank for matrix in own if matrix.rank is not None)
        errors = [matrix.error for matrix in own if math.isfinite(matrix.error)]
        row = {
            "weights": f"`{kind}`" if form else "all others",
            "count": str(len(own)),
            "method": method or "–",
            "stored as": (form or "dense") if kept else "",
            "rank": "–".join(dict.fromkeys(map(str, (*ranks[:1], *ranks[-1:])))),
            "bits per weight": f"{8 * after / size:.3g}" if kept else "",
            "MB before": _mb(before) if kept else "",
            "MB after": _mb(after) if kept else "",
            "error": f"{sum(errors) / len(errors):.3f}" if errors else "",
        }
        rows.append(row)
    heads = [head for head in rows[0] if any(row[head] for row in rows)]
    return _markdown(heads, [[row[head] for head in heads] for row in rows])


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def _notes(folder: Path, record: Record, matrices: Sequence[_Matrix]) -> Iterator[str]:
    explanations = {
        "factors": "Factors: the product of two thin matrices stands for the matrix.",
        "codes": "Codes: whole numbers, times scales that groups of them share.",
    }
    if words := [text for word, text in explanations.items() if any(word in matrix.form for matrix in matrices)]:
        yield " ".join(words)
    weighted = [step for step in record.steps if step.weighting]
    if any(math.isfinite(matrix.error) for matrix in matrices):
        under = " Both norms are weighted as the solver weighted them." if weighted else ""
        yield f"The error of a matrix is ‖A − Â‖ / ‖A‖; the table has the mean over a row.{under}"
    if weighted and re.fullmatch("[0-9]{1,12}", texts := str(weighted[-1].calibration.get("texts"))):
        name = _word(weighted[-1].weighting)
        yield f"{int(texts):,} texts showed which errors matter (weighting {name}); no labels were used."
    if (folder / RECORD).exists():
        yield f"[{RECORD}]({RECORD}) has the settings, and the numbers of each matrix."


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}" if size >= 1e6 else f"{size / 1e6:.2g}"
