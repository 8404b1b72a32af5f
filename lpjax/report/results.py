"""Files of experiments: `results.json` of the demo, or JSON lines with one compressed net per line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lpjax._files.json import Count, Plain, RecordError, Text, as_type, parse_object, read_object, read_text
from lpjax._provenance import method_label

Scores = Mapping[str, float | None]
Provenance = tuple[Mapping[str, str], Mapping[str, str]]

_MOST_CELLS = 20_000


@dataclasses.dataclass(frozen=True)
class Cell:
    """A net compressed in one way and scored.

    Attributes:
        net, task, layers: what was compressed and scored; "" if the file does not tell.
        compression: share of the layers' parameters that was removed.
        method, p: the solver and its exponent, None for a solver without one.
        parameters: of the whole net; None if not known.
        seconds: solve time; None if not known.
        scores: by name; None for a score that is not finite.
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
        """The method, with its exponent if that matters."""
        return method_label(self.method, self.p)


@dataclasses.dataclass(frozen=True)
class Panel:
    """Cells of one net, task and choice of layers, and one score.

    Attributes:
        cells: the cells that have this score.
        dense: the score of the dense net; None if not known.
    """

    net: str
    task: str
    layers: str
    score: str
    dense: float | None
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """The contents of a file of experiments.

    Attributes:
        name: of the file, as given.
        cells: in the order of the file, without the dense net.
        dense: (net, task, layers) -> scores of the dense net; layers "" if they hold for all.
        notes: what a reader should know.
        seeds: the different seeds.
        provenance: the different (versions, machine).
    """

    name: str
    cells: tuple[Cell, ...]
    dense: Mapping[tuple[str, str, str], Scores]
    notes: tuple[str, ...]
    seeds: tuple[int, ...]
    provenance: tuple[Provenance, ...]

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
        return [Panel(*key, self._dense_score(*key), tuple(cells)) for key, cells in groups.items()]

    def _dense_score(self, net: str, task: str, layers: str, score: str) -> float | None:
        values = (self.dense.get((net, task, place), {}).get(score) for place in (layers, ""))
        return next((value for value in values if value is not None), None)


class _Source(msgspec.Struct, kw_only=True):
    """What tells how a row, or all rows of a file, came about."""

    seed: Count | None = None
    versions: dict[str, Plain | None] | None = None
    machine: dict[str, Plain | None] | None = None

    @property
    def provenance(self) -> Provenance:
        """Versions and machine as text."""
        versions, machine = (
            {name: str(value) for name, value in (values or {}).items() if value is not None}
            for values in (self.versions, self.machine)
        )
        return versions, machine


_Numbers = float | dict[str, float | None] | None


class _Row(_Source, kw_only=True):
    method: Text
    compression: float
    net: Text | None = None
    task: Text | None = None
    layers: Text | None = None
    p: float | None = None
    parameters: Count | None = None
    seconds: float | None = None
    seconds_solving: float | None = None
    complete: bool | None = None
    dense: _Numbers | msgspec.UnsetType = msgspec.UNSET
    score: _Numbers | msgspec.UnsetType = msgspec.UNSET
    scores: _Numbers | msgspec.UnsetType = msgspec.UNSET
    metrics: _Numbers | msgspec.UnsetType = msgspec.UNSET

    def cell(self, place: str, score: str) -> Cell:
        """The row as a cell; `score` names a score that is a number alone, `place` the row in messages."""
        share = self.compression / 100 if self.compression >= 1 else self.compression
        if not -1 < share < 1:
            got = f"{place}compression is {self.compression:g}"
            raise RecordError(f"{got}; expected a share below 1, or percent below 100")
        given = [numbers for numbers in (self.score, self.scores, self.metrics) if numbers is not msgspec.UNSET]
        if not given:
            raise RecordError(f"{place}it lacks `score`, `scores` or `metrics`; expected one of them")
        if given[0] == {}:
            raise RecordError(f"{place}the scores are an empty object; expected numbers by name")
        seconds = self.seconds_solving if self.seconds is None else self.seconds
        names = self.net or "", self.task or "", self.layers or ""
        scores = _by_name(given[0], score)
        return Cell(*names, share, self.method, self.p, self.parameters, seconds, scores)


class _Demo(_Source, kw_only=True):
    rows: list[_Row]
    score: Text
    dense: float | None = None


def _by_name(numbers: Any, score: str) -> Scores:
    return numbers if isinstance(numbers, dict) else {score: numbers}


def read_results(name: str | Path) -> Results:
    """Read a file of experiments.

    `results.json` is one object, as the demo writes it. In JSON lines every line is an object with `method`,
    `compression`, and `score` (a number) or `scores` or `metrics` (an object of numbers). Optional are net, task,
    layers, p, `dense` (a number, or an object of numbers), parameters, seconds, seed, versions and machine. A
    `compression` of 1 or more is in percent, less is a share. The line of the dense net has the method "dense".

    Raises:
        RecordError: it is neither; names the file, the line and the key.
    """
    path = Path(name)
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
        if not lines or len(lines) > _MOST_CELLS:
            raise RecordError(f"{name} has {len(lines)} lines; expected 1 to {_MOST_CELLS}, with one JSON object each")
        places = [f"{name}, line {i}" for i, _ in lines]
        rows = [as_type(parse_object(line, place), _Row, place) for (_, line), place in zip(lines, places, strict=True)]
        return _results(str(name), rows, rows, [f"{place}: " for place in places])
    data = read_object(path)
    if data.get("rows") is None or data.get("score") is None:
        raise RecordError(
            f"{name} lacks `rows` or `score`; expected results.json of the demo, or experiments as .jsonl"
        )
    demo = as_type(data, _Demo, str(name))
    places = [f"{name}: rows[{i}]: " for i in range(len(demo.rows))]
    return _results(str(name), demo.rows, [demo], places, demo.score, demo.dense)


def _results(
    name: str,
    rows: Sequence[_Row],
    sources: Sequence[_Source],
    places: Sequence[str],
    score: str = "score",
    dense: float | None = None,
) -> Results:
    """Results from the rows of a file.

    Args:
        name: of the file.
        rows, places: the rows, and how messages call them.
        sources: what holds seeds, versions and machines.
        score: name of a score that is a number alone.
        dense: the score of the dense net, if the file has it once for all rows.
    """
    cells = [row.cell(place, score) for row, place in zip(rows, places, strict=True)]
    compressed = tuple(cell for cell in cells if cell.method != "dense")
    if not compressed:
        raise RecordError(f"{name} has no cell of a compressed net; expected one or more")
    references: dict[tuple[str, str, str], Scores] = {}
    for row, cell in zip(rows, cells, strict=True):
        if cell.method == "dense":
            references[cell.net, cell.task, ""] = cell.scores
        elif row.dense is not msgspec.UNSET:
            references[cell.net, cell.task, cell.layers] = _by_name(row.dense, score)
    if dense is not None:
        references[compressed[0].net, compressed[0].task, ""] = {score: dense}
    notes = []
    if subsets := sum(row.complete is False for row in rows):
        notes.append(f"{subsets} of {len(rows)} were scored on a subset of the split: these are no GLUE scores.")
    if missing := sum(value is None for cell in compressed for value in cell.scores.values()):
        notes.append(f"{missing} scores are not finite, or null: the table shows a dash, and no chart shows them.")
    seeds = dict.fromkeys(source.seed for source in sources if source.seed is not None)
    provenance: list[Provenance] = []
    for source in sources:
        if any(source.provenance) and source.provenance not in provenance:
            provenance.append(source.provenance)
    return Results(name, compressed, references, tuple(notes), tuple(seeds), tuple(provenance))
