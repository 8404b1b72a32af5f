"""`lpjax inspect`."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax._extras import require
from lpjax.cli._common import Model, check_new_file, find_model, misuse, progress, split_patterns

if TYPE_CHECKING:
    from lpjax.inspection import Inspection, Kind, LeafRecord

_LEAST_LABEL = 34  # columns for the paths, where they need as many


def inspect(
    model: Model,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Matrices to look at: embeddings, attention, feed_forward, encoder, or a regular expression; "
            "several by commas; default: all."
        ),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="Shares of a matrix's parameters to give ranks for, each in (0, 1], by commas.")
    ] = "0.75,0.5,0.25",
    all_leaves: Annotated[
        bool, typer.Option("--all", help="Show the leaves that are no matrices, too; by default they are summed up.")
    ] = False,
    each: Annotated[
        bool, typer.Option("--each", help="A row for every leaf, not one for equal-shaped leaves of all layers.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG to be drawn: spectra and row norms.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the PNG of --plot if it is there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, with every leaf, and nothing else on stdout.")
    ] = False,
) -> None:
    """Show what can be compressed, and what it would take: spectra, outliers, and the rank that each keep gives."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.inspection import inspect_params, tied_paths
    from lpjax.models import name_table
    from lpjax.report import plot_inspection
    from lpjax.select import select_paths

    with misuse():
        keeps = _keeps(keep)
        if layers is not None and all_leaves:
            raise ValueError("--layers chooses matrices and --all shows every leaf; expected at most one of them")
        if plot is not None:
            _check_plot(plot, force)
        folder = find_model(model)
    checkpoint = load_checkpoint(folder)
    patterns = None if layers is None else split_patterns(layers)
    if patterns is not None:
        with misuse():
            select_paths(checkpoint.params, patterns)
    table = name_table(checkpoint.config)
    with progress() as advance:
        inspection = inspect_params(
            checkpoint.params,
            select=patterns,
            keep=keeps,
            tied=tied_paths(checkpoint.params, table),
            progress=advance,
        )
    if plot is not None:
        plot_inspection(plot, inspection, title=Path(model).name or model)
    if as_json:
        print(json.dumps(_document(model, inspection), allow_nan=False))
        return
    _print(Console(), model, inspection, all_leaves=all_leaves, each=each)
    if plot is not None:
        Console().print(f"drawn: {escape(str(plot))}", highlight=False, soft_wrap=True)


def _keeps(text: str) -> tuple[float, ...]:
    """The numbers of --keep.

    Raises:
        ValueError: one is no number in (0, 1].
    """
    keeps = []
    for part in text.split(","):
        try:
            share = float(part)
        except ValueError:
            share = float("nan")
        if not 0 < share <= 1:
            raise ValueError(f"--keep is {text!r}; expected numbers in (0, 1] by commas, e.g. 0.75,0.5,0.25")
        keeps.append(share)
    return tuple(dict.fromkeys(keeps))


def _check_plot(plot: Path, force: bool) -> None:
    require("report", "--plot", "matplotlib")
    if plot.suffix.lower() != ".png":
        raise ValueError(f"--plot is {plot}; expected a name that ends in .png")
    check_new_file("--plot", plot, force, "PNG picture")


def _document(model: str, inspection: Inspection) -> dict[str, Any]:
    """All of an inspection as JSON can say it: numbers of seven digits, null for what overflows."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [plain(float(f"{number:.7g}")) for number in value]
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        return value

    leaves = []
    for leaf in inspection.leaves:
        fields = {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
        fields["keeps"] = [dataclasses.asdict(keep) for keep in leaf.keeps]
        leaves.append({name: plain(value) for name, value in fields.items()})
    return {
        "model": model,
        "parameters": inspection.parameters,
        "num_leaves": inspection.num_leaves,
        "leaves": leaves,
    }


def _print(console: Console, model: str, inspection: Inspection, *, all_leaves: bool, each: bool) -> None:
    from lpjax.inspection import Kind, kinds_of

    matrices = [leaf for leaf in inspection.leaves if leaf.singular_values is not None]
    listed = list(inspection.leaves) if all_leaves else matrices
    dtypes = list(dict.fromkeys(leaf.dtype for leaf in listed))

    def kinds(leaves: Iterable[LeafRecord]) -> list[Kind]:
        return [Kind(leaf.path, "", (), (leaf,)) for leaf in leaves] if each else kinds_of(leaves)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    head = f"{model}: {_count(inspection.parameters)} parameters in {inspection.num_leaves} leaves"
    kind = f", {dtypes[0]}" if len(dtypes) == 1 else ""
    say(head + kind + (f"; {len(listed)} shown" if len(listed) < inspection.num_leaves else ""))
    if listed:
        _print_leaves(console, kinds(listed), with_dtype=len(dtypes) > 1)
    if matrices:
        _print_keeps(console, kinds(matrices))
    others = [leaf for leaf in inspection.leaves if leaf.singular_values is None]
    if others and not all_leaves:
        share = _percent(sum(leaf.share for leaf in others))
        size = _count(sum(leaf.size for leaf in others))
        say(f"{len(others)} other leaves, no matrices (--all shows them): {size} parameters, {share}")


Column = tuple[str, Callable[["Kind"], str]]
"""A heading, and what stands below it for a kind of leaf."""


def _print_leaves(console: Console, kinds: Sequence[Kind], *, with_dtype: bool) -> None:
    columns: list[Column] = [
        ("shape", lambda kind: "×".join(map(str, kind.leaves[0].shape)) or "scalar"),
        *([("dtype", lambda kind: kind.leaves[0].dtype)] if with_dtype else []),
        ("share", lambda kind: _percent(sum(leaf.share for leaf in kind.leaves))),
        ("stable\nrank", lambda kind: _span((leaf.stable_rank for leaf in kind.leaves), _short)),
        ("kurtosis", lambda kind: _span((leaf.kurtosis for leaf in kind.leaves), _short)),
        ("entries", lambda kind: _span((leaf.entry_ratio for leaf in kind.leaves), _short)),
        ("rows", lambda kind: _span((leaf.row_ratio for leaf in kind.leaves), _fine)),
        ("worst\nrow", _worst_row),
    ]
    _print_tables(console, "What the leaves are like", kinds, columns)
    layers = any(kind.layers for kind in kinds)
    _explain(
        console,
        "share: of all parameters. stable rank: ‖A‖²_F / ‖A‖₂². kurtosis: excess of the entries, 0 for a Gaussian. "
        "entries: largest magnitude / median magnitude. rows (outputs of a kernel, tokens of an embedding): largest "
        f"norm / median norm; worst row: which that is{', layer:row. lo…hi: over the layers' if layers else ''}.",
    )


def _print_keeps(console: Console, kinds: Sequence[Kind]) -> None:
    keeps = kinds[0].leaves[0].keeps
    columns: list[Column] = [
        ("rank\n90 %", lambda kind: _span((leaf.rank_90 for leaf in kind.leaves), str)),
        ("of", lambda kind: str(min(kind.leaves[0].shape))),
        ("keep\n90 %", lambda kind: _span((leaf.keep_90 for leaf in kind.leaves), lambda share: f"{share:.2f}")),
        *((f"keep {keep.keep:g}", functools.partial(_keep_cell, index=i)) for i, keep in enumerate(keeps)),
    ]
    _print_tables(console, "What factoring would take", kinds, columns)
    hopeless = any(not keep.smaller for kind in kinds for keep in kind.leaves[0].keeps)
    _explain(
        console,
        "rank 90 %: least rank that holds 90 % of ‖A‖²_F, of all; keep 90 %: the --keep that gives it (above 1: such a "
        "pair is larger). keep: the rank that it gives, and the share of ‖A‖²_F that the best pair of that rank holds."
        + (" none: no such pair is smaller than the leaf is now." if hopeless else ""),
    )


def _print_tables(console: Console, title: str, kinds: Sequence[Kind], columns: Sequence[Column]) -> None:
    """A table with a row for each kind, in as many parts as leave room for the paths.

    Kinds of the same layers are set in below a line that names the layers.
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
    for i, width in enumerate(widths):
        if parts[-1] and min(longest, _LEAST_LABEL) + sum(widths[j] + 2 for j in parts[-1]) + width + 3 > console.width:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        room = max(12, min(longest, console.width - sum(widths[j] + 2 for j in part) - 1))
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
        console.print(table, "", sep="\n")
        title = f"{title.removesuffix(', continued')}, continued"


def _explain(console: Console, text: str) -> None:
    console.print(f"[dim]{escape(text)}[/]\n", highlight=False)


def _folded(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width`, broken after a slash or a blank where there is one."""
    indent = " " * (len(text) - len(text.lstrip()))
    while cell_len(text) > width:
        cut = max(text.rfind(letter, len(indent) + 1, width) for letter in "/ ") + 1
        cut = cut if cut > len(indent) + 1 else width
        yield text[:cut]
        text = indent + text[cut:]
    yield text


def _notes(kind: Kind) -> list[str]:
    """That the leaves are factored, or tied to what."""
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
    """Least and largest value, or the one that they are; nothing where there is none."""
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
    """Two digits after the point below ten: what one is told from."""
    return f"{ratio:.2f}" if ratio < 9.995 else _short(ratio)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "<0.1 %"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
