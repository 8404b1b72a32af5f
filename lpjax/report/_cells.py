"""Files of experiments: `results.json` of the demo, or JSON lines, a cell each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lpjax._files.json import Fields, RecordError, parse_object, read_text
from lpjax._provenance import method_label

Scores = Mapping[str, float | None]

_MOST_CELLS = 20_000


@dataclasses.dataclass(frozen=True)
class Cell:
    """A net compressed in one way and scored.

    Attributes:
        net, task, layers: what, "" where the file does not tell.
        compression: share of the layers' parameters that went.
        method, p: by which solver; None without an exponent.
        parameters: of the whole net, None where not told.
        seconds: solving, None where not told.
        scores: by name; None where not finite.
    """

    net: str
    task: str
    layers: str
    compression: float
    method: str
    p: float | None
    parameters: int | None
    seconds: float | None
    scores: Scores

    @property
    def label(self) -> str:
        """The method with its exponent, if it has a say."""
        return method_label(self.method, self.p)


@dataclasses.dataclass(frozen=True)
class Panel:
    """Cells of one net, task and choice of layers, and one score.

    Attributes:
        cells: of which each has that score, or None where it was not finite.
        dense: the score of the dense net, None where not told.
    """

    net: str
    task: str
    layers: str
    score: str
    dense: float | None
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """What a file of experiments holds.

    Attributes:
        name: of the file, as it was named.
        cells: in the order of the file, without the dense net.
        dense: (net, task, layers) -> its scores; layers "" where it is told for all.
        notes: what a reader should know.
        seeds: that the cells were made with, each once.
        made: (versions, machine) that they were made with, each pair once.
    """

    name: str
    cells: tuple[Cell, ...]
    dense: Mapping[tuple[str, str, str], Scores]
    notes: tuple[str, ...]
    seeds: tuple[int, ...]
    made: tuple[tuple[Mapping[str, str], Mapping[str, str]], ...]

    @property
    def label(self) -> str:
        """The name without folders."""
        return Path(self.name).name

    @property
    def panels(self) -> list[Panel]:
        """The cells by net, task, layers and score."""
        groups: dict[tuple[str, str, str, str], list[Cell]] = {}
        for cell in self.cells:
            for score in cell.scores:
                groups.setdefault((cell.net, cell.task, cell.layers, score), []).append(cell)
        return [Panel(*key, self._dense(*key), tuple(cells)) for key, cells in groups.items()]

    def _dense(self, net: str, task: str, layers: str, score: str) -> float | None:
        for place in (layers, ""):
            if (found := self.dense.get((net, task, place), {}).get(score)) is not None:
                return found
        return None


def read_results(name: str | Path) -> Results:
    """Read a file of experiments.

    `results.json` is one object, as the demo writes it. In JSON lines every line is an object with `method`,
    `compression` and `score` (a number), or `scores` or `metrics` (an object of numbers); and as far as they are
    told net, task, layers, p, `dense` (a number or an object like the scores), parameters, seconds, seed, versions,
    machine. A `compression` of 1 or more is in percent, below it is a share. The line of the dense net has the
    method "dense".

    Raises:
        RecordError: it is neither; names the file, the line and the key.
    """
    path = Path(name)
    text = read_text(path)
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if not lines or len(lines) > _MOST_CELLS:
            raise RecordError(f"{name} has {len(lines)} lines; expected one to {_MOST_CELLS}, a JSON object each")
        found = [parse_object(line, f"{name}, line {i}") for i, line in lines]
        return _results(str(name), found, found)
    fields = parse_object(text, str(name))
    if "rows" not in fields or "score" not in fields:
        raise RecordError(
            f"{name} lacks `rows` or `score`; expected results.json of the demo, or experiments as .jsonl"
        )
    score = fields.need("score", fields.text("score"))
    return _results(str(name), list(fields.objects("rows")), [fields], score, fields.number("dense"))


def _results(
    name: str, rows: list[Fields], told: list[Fields], score: str = "score", dense: float | None = None
) -> Results:
    cells: list[Cell] = []
    references: dict[tuple[str, str, str], Scores] = {}
    subsets = 0
    for row in rows:
        cell = _cell(row, score)
        subsets += row.flag("complete") is False
        if cell.method == "dense":
            references[cell.net, cell.task, ""] = cell.scores
            continue
        cells.append(cell)
        if "dense" in row:
            references[cell.net, cell.task, cell.layers] = _scores(row, ("dense", "dense"), score)
    if not cells:
        raise RecordError(f"{name} has no cell of a compressed net; expected one or more")
    if dense is not None:
        references[cells[0].net, cells[0].task, ""] = {score: dense}
    notes = []
    if subsets:
        notes.append(f"{subsets} of {len(rows)} were scored on a subset of the split: these are no GLUE scores.")
    strange = sum(value is None for cell in cells for value in cell.scores.values())
    if strange:
        notes.append(f"{strange} scores are not finite, or null: told so in the table, and not drawn.")
    return Results(
        name,
        tuple(cells),
        references,
        tuple(notes),
        tuple(dict.fromkeys(seed for one in told if (seed := one.count("seed")) is not None)),
        _different((one.plain("versions"), one.plain("machine")) for one in told),
    )


def _cell(row: Fields, score: str) -> Cell:
    compression = row.need("compression", row.number("compression"))
    compression = compression / 100 if compression >= 1 else compression
    if not -1 < compression < 1:
        raise row.refuse("compression", "a share below 1, or percent below 100")
    seconds = next((row.number(key) for key in ("seconds", "seconds_solving") if key in row), None)
    return Cell(
        net=row.text("net") or "",
        task=row.text("task") or "",
        layers=row.text("layers") or "",
        compression=compression,
        method=row.need("method", row.text("method")),
        p=row.number("p"),
        parameters=row.count("parameters"),
        seconds=seconds,
        scores=_scores(row, ("score", "scores", "metrics"), score),
    )


def _scores(row: Fields, keys: tuple[str, ...], score: str) -> Scores:
    """The number of `score`, or the numbers by name of another key."""
    key = next((key for key in keys if key in row.data), None)
    if key is None:
        raise RecordError(f"{row.where} lacks `score`, `scores` or `metrics`; expected one of them")
    if not isinstance(row.data[key], dict):
        return {score: row.number(key)}
    found = row.numbers(key)
    if not found:
        raise row.refuse(key, "numbers by name")
    return found


def _different(told: Iterator[tuple[Mapping[str, str], Mapping[str, str]]]) -> tuple[Any, ...]:
    found: list[Any] = []
    for one in told:
        if any(one) and one not in found:
            found.append(one)
    return tuple(found)
