"""Files of experiments: `results.json` of the demo, or JSON lines with one compressed net per line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lpjax._files.json import Fields, RecordError, parse_object, read_text
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
    text = read_text(path)
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if not lines or len(lines) > _MOST_CELLS:
            raise RecordError(f"{name} has {len(lines)} lines; expected 1 to {_MOST_CELLS}, with one JSON object each")
        rows = [parse_object(line, f"{name}, line {i}") for i, line in lines]
        return _results(str(name), rows, rows)
    fields = parse_object(text, str(name))
    if "rows" not in fields or "score" not in fields:
        raise RecordError(
            f"{name} lacks `rows` or `score`; expected results.json of the demo, or experiments as .jsonl"
        )
    score = fields.need("score", fields.text("score"))
    return _results(str(name), list(fields.objects("rows")), [fields], score, fields.number("dense"))


def _results(
    name: str, rows: list[Fields], sources: list[Fields], score: str = "score", dense: float | None = None
) -> Results:
    """Results from the rows of a file; `sources` are the objects that hold seeds, versions and machines."""
    parsed = [(row, _cell(row, score)) for row in rows]
    cells = tuple(cell for _, cell in parsed if cell.method != "dense")
    if not cells:
        raise RecordError(f"{name} has no cell of a compressed net; expected one or more")
    references: dict[tuple[str, str, str], Scores] = {}
    for row, cell in parsed:
        if cell.method == "dense":
            references[cell.net, cell.task, ""] = cell.scores
        elif "dense" in row:
            references[cell.net, cell.task, cell.layers] = _scores(row, ("dense",), score)
    if dense is not None:
        references[cells[0].net, cells[0].task, ""] = {score: dense}
    notes = []
    if subsets := sum(row.flag("complete") is False for row in rows):
        notes.append(f"{subsets} of {len(rows)} were scored on a subset of the split: these are no GLUE scores.")
    if missing := sum(value is None for cell in cells for value in cell.scores.values()):
        notes.append(f"{missing} scores are not finite, or null: the table shows a dash, and no chart shows them.")
    seeds = dict.fromkeys(seed for source in sources if (seed := source.count("seed")) is not None)
    provenance: list[Provenance] = []
    for source in sources:
        entry = source.plain("versions"), source.plain("machine")
        if any(entry) and entry not in provenance:
            provenance.append(entry)
    return Results(name, cells, references, tuple(notes), tuple(seeds), tuple(provenance))


def _cell(row: Fields, score: str) -> Cell:
    compression = row.need("compression", row.number("compression"))
    compression = compression / 100 if compression >= 1 else compression
    if not -1 < compression < 1:
        raise row.refuse("compression", "a share below 1, or percent below 100")
    return Cell(
        net=row.text("net") or "",
        task=row.text("task") or "",
        layers=row.text("layers") or "",
        compression=compression,
        method=row.need("method", row.text("method")),
        p=row.number("p"),
        parameters=row.count("parameters"),
        seconds=next((row.number(key) for key in ("seconds", "seconds_solving") if key in row), None),
        scores=_scores(row, ("score", "scores", "metrics"), score),
    )


def _scores(row: Fields, keys: tuple[str, ...], score: str) -> Scores:
    """The first of `keys` that the row has: the number of `score`, or numbers by name."""
    key = next((key for key in keys if key in row.data), None)
    if key is None:
        raise RecordError(f"{row.where} lacks `score`, `scores` or `metrics`; expected one of them")
    if not isinstance(row.data[key], dict):
        return {score: row.number(key)}
    if not (numbers := row.numbers(key)):
        raise row.refuse(key, "numbers by name")
    return numbers
