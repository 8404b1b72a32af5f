"""Files of experiments: `results.json` of the demo, or JSON lines with one compressed model per line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lpjax._files.json import Count, Exponent, Plain, RecordError, Text, as_type, parse_object, read_object, read_text
from lpjax._provenance import method_label

Scores = Mapping[str, float | None]
Numbers = float | dict[str, float | None] | None
Provenance = tuple[Mapping[str, Plain], Mapping[str, Plain]]

_MOST_CELLS = 20_000


class _Source(msgspec.Struct, kw_only=True):
    """The provenance of a row, or of all rows of a file."""

    seed: Count | None = None
    versions: dict[str, Plain | None] | None = None
    machine: dict[str, Plain | None] | None = None

    @property
    def provenance(self) -> Provenance:
        """Versions and machine, without unknown values."""
        known = [{k: v for k, v in (part or {}).items() if v is not None} for part in (self.versions, self.machine)]
        return known[0], known[1]


class Cell(_Source, kw_only=True):
    """A compressed model with its scores: a row of a file.

    Attributes:
        net, task, layers: names of the model, the task and the compressed layers; None if not known.
        compression: share of the layers' parameters that was removed; in a file, 1 or more is percent.
        method, p: the solver and its exponent; p is None for a solver without one.
        parameters: number of parameters of the whole model; None if not known.
        seconds: solve time; None if not known.
        complete: False if only a subset of the split was scored.
        scores: scores by name; None for a score that is not finite. In a file, the key is `scores` or `metrics`, or
            `score` for a single number.
        dense: scores of the dense model, if the row has them.
    """

    method: Text
    compression: float
    net: Text | None = None
    task: Text | None = None
    layers: Text | None = None
    p: Exponent | None = None
    parameters: Count | None = None
    seconds: float | None = None
    seconds_solving: float | None = None
    complete: bool | None = None
    score: Numbers | msgspec.UnsetType = msgspec.UNSET
    scores: Numbers | msgspec.UnsetType = msgspec.UNSET
    metrics: Numbers | msgspec.UnsetType = msgspec.UNSET
    dense: Numbers | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        self.seconds = self.seconds_solving if self.seconds is None else self.seconds
        compression = self.compression
        self.compression = compression / 100 if compression >= 1 else compression
        if not -1 < self.compression < 1:
            raise ValueError(f"compression is {compression:g}; expected a share below 1, or percent below 100")
        scores = [part for part in (self.score, self.scores, self.metrics) if part is not msgspec.UNSET]
        if not scores or scores[0] == {}:
            raise ValueError("it lacks `score`, `scores` or `metrics`; expected a number, or numbers by name")
        self.scores = _by_name(scores[0])
        self.dense = self.dense if self.dense is msgspec.UNSET else _by_name(self.dense)

    @property
    def key(self) -> tuple[str, str, str]:
        """Net, task and layers; "" for those that are not known."""
        return self.net or "", self.task or "", self.layers or ""

    def value(self, score: str) -> float | None:
        """The score of this name; None if there is none, or it is not finite."""
        return _by_name(self.scores).get(score)

    @property
    def label(self) -> str:
        """The method, with its exponent if that matters."""
        return method_label(self.method, None if self.p is None else float(self.p))


def _by_name(numbers: Any) -> dict[str, float | None]:
    """Scores by name; a single number is called "score"."""
    return numbers if isinstance(numbers, dict) else {"score": numbers}


@dataclasses.dataclass(frozen=True)
class Panel:
    """Cells of one model, task and choice of layers, for one score.

    Attributes:
        cells: the cells that have this score.
        dense: the score of the dense model; None if not known.
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
        name: name of the file, as given.
        cells: cells in the order of the file, without the dense model.
        dense: (net, task, layers) -> scores of the dense model; layers "" if they hold for all.
        notes: notes for the reader.
        seeds: distinct seeds.
        provenance: distinct pairs (versions, machine).
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
        """The cells by model, task, layers and score."""
        groups: dict[tuple[str, str, str, str], list[Cell]] = {}
        for cell in self.cells:
            for score in _by_name(cell.scores):
                groups.setdefault((*cell.key, score), []).append(cell)
        return [Panel(*key, self._dense_score(*key), tuple(cells)) for key, cells in groups.items()]

    def _dense_score(self, net: str, task: str, layers: str, score: str) -> float | None:
        values = (self.dense.get((net, task, place), {}).get(score) for place in (layers, ""))
        return next((value for value in values if value is not None), None)


class _Demo(_Source, kw_only=True):
    """The keys that are read from the demo's results.json; its scores are single numbers."""

    rows: tuple[Cell, ...]
    score: Text
    dense: float | None = None


def read_results(name: str | Path) -> Results:
    """Read a file of experiments.

    `results.json` is one object, as the demo writes it. In JSON lines every line is an object with `method`,
    `compression`, and `score` (a number) or `scores` or `metrics` (an object of numbers). Optional are `net` (the
    model), task, layers, p, `dense` (a number, or an object of numbers), parameters, seconds, seed, versions and
    machine. A `compression` of 1 or more is in percent, less is a share. The line of the dense model has the method
    "dense".

    Raises:
        RecordError: it is neither; names the file, the line and the key.
    """
    path = Path(name)
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
        if not lines or len(lines) > _MOST_CELLS:
            raise RecordError(f"{name} has {len(lines)} lines; expected 1 to {_MOST_CELLS}, with one JSON object each")
        cells = [as_type(parse_object(line, f"{name}, line {i}"), Cell, f"{name}, line {i}") for i, line in lines]
        return _results(str(name), cells, cells)
    data = read_object(path)
    if data.get("rows") is None or data.get("score") is None:
        raise RecordError(
            f"{name} lacks `rows` or `score`; expected results.json of the demo, or experiments as .jsonl"
        )
    demo = as_type(data, _Demo, str(name))
    for cell in demo.rows:
        for scores in (cell.scores, cell.dense):
            if isinstance(scores, dict) and "score" in scores:
                scores[demo.score] = scores.pop("score")
    results = _results(str(name), demo.rows, [demo])
    dense = {} if demo.dense is None else {(*results.cells[0].key[:2], ""): {demo.score: demo.dense}}
    return dataclasses.replace(results, dense={**results.dense, **dense})


def _results(name: str, rows: Sequence[Cell], sources: Sequence[_Source]) -> Results:
    """Results from the rows of a file; `sources` hold seeds, versions and machines."""
    cells = tuple(row for row in rows if row.method != "dense")
    if not cells:
        raise RecordError(f"{name} has no cell of a compressed model; expected one or more")
    dense: dict[tuple[str, str, str], Scores] = {}
    for row in rows:
        if row.method == "dense":
            dense[(*row.key[:2], "")] = _by_name(row.scores)
        elif row.dense is not msgspec.UNSET:
            dense[row.key] = _by_name(row.dense)
    notes = []
    if subsets := sum(row.complete is False for row in rows):
        notes.append(f"{subsets} of {len(rows)} were scored on a subset of the split: these are not GLUE scores.")
    if missing := sum(value is None for cell in cells for value in _by_name(cell.scores).values()):
        notes.append(f"{missing} scores are not finite, or null: the table shows a dash, and no chart shows them.")
    seeds = dict.fromkeys(source.seed for source in sources if source.seed is not None)
    provenance: list[Provenance] = []
    for source in sources:
        if any(source.provenance) and source.provenance not in provenance:
            provenance.append(source.provenance)
    return Results(name, cells, dense, tuple(notes), tuple(seeds), tuple(provenance))
