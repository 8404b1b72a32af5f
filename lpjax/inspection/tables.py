"""An inspection as tables for a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lpjax._files.json import finite
from lpjax.inspection.kinds import Kind, kinds_of
from lpjax.inspection.records import Inspection, LeafRecord

Column = tuple[str, Callable[[Kind], str]]
"""A heading, and the text below it for a kind of leaf."""

_LEAST_LABEL = 34  # columns reserved for paths, if they need that many


def inspection_document(model: str, inspection: Inspection) -> dict[str, Any]:
    """An inspection as a JSON document: numbers in arrays have seven digits, and null stands for nonfinite ones."""

    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            name: [float(f"{number:.7g}") for number in value] if isinstance(value, np.ndarray) else value
            for name, value in pairs
        }

    leaves = [dataclasses.asdict(leaf, dict_factory=plain) for leaf in inspection.leaves]
    counts = {"parameters": inspection.parameters, "num_leaves": inspection.num_leaves}
    return finite({"model": model, **counts, "leaves": leaves})


def inspection_tables(
    model: str, inspection: Inspection, *, width: int, all_leaves: bool = False, each: bool = False
) -> list[RenderableType]:
    """Tables and lines of text, none wider than `width` columns.

    Args:
        model: name of the model, for the first line.
        inspection: the records.
        width: width of the terminal, in columns.
        all_leaves: whether to list leaves that are not matrices, too.
        each: whether every leaf has a row of its own, instead of one row for similar leaves of all layers.
    """
    matrices = [leaf for leaf in inspection.leaves if leaf.singular_values is not None]
    listed = list(inspection.leaves) if all_leaves else matrices
    dtypes = list(dict.fromkeys(leaf.dtype for leaf in listed))

    def kinds(leaves: Iterable[LeafRecord]) -> list[Kind]:
        return [Kind(leaf.path, "", (), (leaf,)) for leaf in leaves] if each else kinds_of(leaves)

    head = f"{model}: {_count(inspection.parameters)} parameters in {inspection.num_leaves} leaves"
    head += f", {dtypes[0]}" if len(dtypes) == 1 else ""
    parts: list[RenderableType] = [head + (f"; {len(listed)} shown" if len(listed) < inspection.num_leaves else "")]
    if listed:
        parts += _leaves(kinds(listed), width, with_dtype=len(dtypes) > 1)
    if matrices:
        parts += _keeps(kinds(matrices), width)
    others = [leaf for leaf in inspection.leaves if leaf.singular_values is None]
    if others and not all_leaves:
        size, share = (sum(getattr(leaf, name) for leaf in others) for name in ("size", "share"))
        parts.append(
            f"{len(others)} other leaves, not matrices (--all shows them): {_count(size)} parameters, {_percent(share)}"
        )
    return parts


def _leaves(kinds: Sequence[Kind], width: int, *, with_dtype: bool) -> Iterator[RenderableType]:
    def spanned(name: str, text: Callable[[Any], str]) -> Callable[[Kind], str]:
        return lambda kind: _span((getattr(leaf, name) for leaf in kind.leaves), text)

    columns: list[Column] = [
        ("shape", lambda kind: "×".join(map(str, kind.leaves[0].shape)) or "scalar"),
        *([("dtype", lambda kind: kind.leaves[0].dtype)] if with_dtype else []),
        ("share", lambda kind: _percent(sum(leaf.share for leaf in kind.leaves))),
        ("stable\nrank", spanned("stable_rank", _short)),
        ("kurtosis", spanned("kurtosis", _short)),
        ("entries", spanned("entry_ratio", _short)),
        ("rows", spanned("row_ratio", _fine)),
        ("worst\nrow", _worst_row),
    ]
    yield from _tables("Statistics of the leaves", kinds, columns, width)
    layers = ", layer:row. lo…hi: over the layers" if any(kind.layers for kind in kinds) else ""
    yield _explanation(
        "share: part of all parameters. stable rank: ‖A‖²_F / ‖A‖₂². kurtosis: excess kurtosis of the entries, 0 for a "
        "Gaussian. entries: largest magnitude / median magnitude. rows (outputs of a kernel, tokens of an embedding): "
        f"largest norm / median norm; worst row: its number{layers}."
    )


def _keeps(kinds: Sequence[Kind], width: int) -> Iterator[RenderableType]:
    columns: list[Column] = [
        ("rank\n90 %", lambda kind: _span((leaf.rank_90 for leaf in kind.leaves), str)),
        ("of", lambda kind: str(min(kind.leaves[0].shape))),
        ("keep\n90 %", lambda kind: _span((leaf.keep_90 for leaf in kind.leaves), lambda share: f"{share:.2f}")),
        *(
            (f"keep {keep.keep:g}", functools.partial(_keep_cell, index=i))
            for i, keep in enumerate(kinds[0].leaves[0].keeps)
        ),
    ]
    yield from _tables("Ranks, and what they keep", kinds, columns, width)
    hopeless = any(not keep.smaller for kind in kinds for keep in kind.leaves[0].keeps)
    yield _explanation(
        "rank 90 %: least rank that holds 90 % of ‖A‖²_F, of all; keep 90 %: the --keep that gives it (above 1: such a "
        "pair is larger). keep: the rank that it gives, and the share of ‖A‖²_F that the best pair of that rank holds."
        + (" none: no such pair is smaller than the leaf is now." if hopeless else "")
    )


def _tables(title: str, kinds: Sequence[Kind], columns: Sequence[Column], width: int) -> Iterator[RenderableType]:
    """A table with a row for each kind, split by columns into parts that leave room for the paths.

    Kinds of the same layers are indented below a line that names the layers.
    """
    rows: list[tuple[str, Kind | None]] = []
    heading = ""
    for kind in kinds:
        above = f"{kind.before}{kind.span}" if kind.layers and kind.after.startswith("/") else ""
        if above and above != heading:
            rows.append((above, None))
        heading = above
        rows.append((f"  {kind.after.lstrip('/')}" if above else kind.name, kind))
    texts = [["" if kind is None else text(kind) for _, kind in rows] for _, text in columns]
    widths = [
        max(map(cell_len, [*heading.split("\n"), *cells])) for (heading, _), cells in zip(columns, texts, strict=True)
    ]
    longest = max(cell_len(label) for label, _ in rows)
    parts: list[list[int]] = [[]]
    for i, own in enumerate(widths):
        if parts[-1] and min(longest, _LEAST_LABEL) + sum(widths[j] + 2 for j in parts[-1]) + own + 3 > width:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        room = max(12, min(longest, width - sum(widths[j] + 2 for j in part) - 1))
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("leaf", width=room)
        for j in part:
            table.add_column(columns[j][0], justify="right", vertical="bottom", no_wrap=True, width=widths[j])
        for i, (label, kind) in enumerate(rows):
            notes = [] if kind is None or part is not parts[0] else _notes(kind)
            indent = " " * (len(label) - len(label.lstrip()) + 2)
            notes = [f"\n[dim]{escape(line)}[/]" for note in notes for line in _folded(indent + note, room)]
            # Numbers stand beside the end of the path, above any note.
            numbers = [texts[j][i] + "\n" * len(notes) for j in part]
            table.add_row(escape("\n".join(_folded(label, room))) + "".join(notes), *numbers)
        yield table
        yield ""
        title = f"{title.removesuffix(', continued')}, continued"


def _explanation(text: str) -> Text:
    return Text(f"{text}\n", style="dim")


def _folded(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width`, broken after a slash or a blank if there is one."""
    indent = " " * (len(text) - len(text.lstrip()))
    while cell_len(text) > width:
        cut = max(text.rfind(letter, len(indent) + 1, width) for letter in "/ ") + 1
        cut = cut if cut > len(indent) + 1 else width
        yield text[:cut]
        text = indent + text[cut:]
    yield text


def _notes(kind: Kind) -> list[str]:
    """Whether the leaves are factored, and what they are tied to."""
    notes = []
    first = kind.leaves[0]
    if first.rank is not None:
        dense = math.prod(first.shape)
        notes.append(f"factored, rank {first.rank}" + (f": {_percent(first.size / dense)} of dense" if dense else ""))
    twins = [path for leaf in kind.leaves for path in leaf.tied]
    if twins:
        notes.append(f"tied: {', '.join(twins[:2])}{', …' if len(twins) > 2 else ''}")
    return notes


def _worst_row(kind: Kind) -> str:
    ranked = [(leaf.row_ratio or 0.0, i) for i, leaf in enumerate(kind.leaves) if leaf.row is not None]
    if not ranked:
        return ""
    worst = max(ranked, key=lambda pair: pair[0])[1]
    row = str(kind.leaves[worst].row)
    return f"{kind.layers[worst]}:{row}" if kind.layers else row


def _keep_cell(kind: Kind, index: int) -> str:
    keeps = [leaf.keeps[index] for leaf in kind.leaves]
    if not keeps[0].smaller:
        return "none"
    energy = _span((100 * keep.energy for keep in keeps), lambda share: f"{share:.{int(share >= 99.5)}f}")
    return f"{keeps[0].rank}, {energy} %"


def _span(values: Iterable[float | None], text: Callable[[Any], str]) -> str:
    """The least and the largest value, one value if they are equal, or nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = text(min(known)), text(max(known))
    return low if low == high else f"{low}…{high}"


def _short(number: float) -> str:
    """One digit after the point below ten, none above."""
    if abs(number) >= 1e5:
        return f"{number:.0e}"
    text = f"{number:.0f}" if abs(number) >= 9.95 else f"{number:.1f}"
    return "0.0" if text == "-0.0" else text


def _fine(ratio: float) -> str:
    """Two digits after the point below ten, to distinguish ratios near 1."""
    return f"{ratio:.2f}" if ratio < 9.995 else _short(ratio)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "<0.1 %"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
