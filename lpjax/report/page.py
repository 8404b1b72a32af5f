"""The report page: one self-contained HTML file."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpjax._extras import require
from lpjax._files.replacing import put_back, write_text
from lpjax._provenance import run_record
from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.source import weight_bytes
from lpjax.checkpoint.targets import check_new_file
from lpjax.evaluation.latency import measure_latency
from lpjax.evaluation.scores import Scorer, fidelity_scorer, stsb_scorer, task_scorer
from lpjax.glue.data import DataError
from lpjax.glue.labels import own_task
from lpjax.report.charts import draw_curves, draw_errors, draw_scores, draw_spectra
from lpjax.report.figure import svg_of
from lpjax.report.results import Results, read_results
from lpjax.report.runs import Run, Scores, compare, distinguish, read_run
from lpjax.report.text import filters
from lpjax.weights.dispatch import is_weight

PAGE = "report.html"
PAGE_KIND = "page of lpjax report"
_SEED = 0
_NORMS = {
    "frobenius": "Frobenius error, ‖A − LR‖ / ‖A‖",
    "error_entries": "error of entries, ℓ1",
    "error_rows": "error of rows, (2,1)",
}

Progress = Callable[[int, int, str], None]


class Baseline(NamedTuple):
    """The dense model that runs are compared with.

    Attributes:
        checkpoint: the model.
        name: name of the model on the page.
    """

    checkpoint: Checkpoint
    name: str


class Missing(NamedTuple):
    """A measurement that a page lacks, and why, or how to add it."""

    what: str
    how: str
    command: str = ""

    def __str__(self) -> str:
        return f"not measured: {self.what}: {self.how} {self.command}".rstrip()


class Chart(NamedTuple):
    """An SVG element with the texts above and below it, which the template escapes."""

    title: str
    svg: str
    note: str = ""


class Charts(NamedTuple):
    """Charts that share a legend of (number of the series, its name); `dense` adds the dense model to it."""

    charts: list[Chart]
    keys: tuple[tuple[int, str], ...] = ()
    dense: bool = False


def write_report(
    out: str | Path,
    runs: Sequence[str | Path],
    *,
    baseline: Baseline | None = None,
    scorers: Sequence[Scorer] = (),
    glue: str | Path | None = None,
    latency: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Missing]:
    """Write one self-contained HTML page of compressed models: accuracy, errors, ranks, sizes, speed and provenance.

    The page contains its style and charts and loads nothing. It is written under a temporary name and renamed.

    Args:
        out: HTML file to write.
        runs: folders that `lpjax compress` wrote, and files of experiments: `results.json` of the demo, or JSON
            lines (see `read_results`).
        baseline: the dense model of all folders. If it is given, these are measured: errors of each layer in three
            norms, spectra, fidelity, latency, and the task that the model was fine-tuned on, or else STS-B by
            embeddings, if its data is found. Otherwise the page shows the contents of folders and records, and lists
            the missing measurements.
        scorers: further functions from a checkpoint to scores by name; each is called with the dense model and with
            every folder's.
        glue: GLUE folder; by default as for `load_examples`.
        latency: whether to time the models.
        overwrite: whether to replace `out` if it exists.
        progress: called with (steps done, steps in all, next step).

    Returns:
        The missing measurements, and how to get them.

    Raises:
        FileExistsError: `out` exists and may not be replaced.
        FileNotFoundError: a run is neither a folder nor a file.
        ValueError: no run; a damaged folder or record (names file and key); a baseline that is another model or
            compressed; or `glue` is given and lacks the data.
        ModuleNotFoundError: `lpjax[report]` is not installed.
    """
    out = Path(out)
    check_new_file(out, PAGE_KIND, overwrite=overwrite)
    if not runs:
        raise ValueError("`runs` is empty; expected folders that `lpjax compress` wrote, or files of experiments")
    check_runs([Path(run) for run in runs], None)
    folders = [read_run(run) for run in runs if Path(run).is_dir()]
    results = [read_results(run) for run in runs if not Path(run).is_dir()]
    distinguish(folders)
    page = _Page(folders, results, None if baseline is None or not folders else baseline.name)
    if baseline is not None and folders:
        page.measure(baseline.checkpoint, scorers, glue, latency, progress)
    elif folders:
        page.missing.append(_without_baseline(folders))
    write_text(out, page.render())
    return page.missing


def write_own_page(out: Path, before: Checkpoint, model: str, progress: Progress | None = None) -> list[Missing]:
    """Write the page of the checkpoint in `out` into that folder, compared with `before` if that is dense.

    Raises:
        ValueError: the page can't be written; the checkpoint in `out` stays.
    """
    compressed = any(is_weight(leaf) for _, leaf in walk(before.params))
    dense = None if compressed else Baseline(before, model)
    try:
        return write_report(out / PAGE, [out], baseline=dense, overwrite=True, progress=progress)
    except (ValueError, OSError) as error:
        raise ValueError(f"the checkpoint is saved in {out}, but its page could not be written: {error}") from error


def check_runs(runs: Sequence[Path], baseline: str | None) -> None:
    """Refuse paths that cannot be runs, before any file is read.

    Raises:
        ModuleNotFoundError: `lpjax[report]` is not installed.
        FileNotFoundError: a run is neither a folder nor a file.
        ValueError: a folder holds results instead of a checkpoint, or no run can be measured against `baseline`.
    """
    require("report", "a report page")
    for run in runs:
        put_back(run)
        if not run.exists():
            raise FileNotFoundError(
                f"there is no {run}; expected a folder that `lpjax compress` wrote, or a file of experiments"
            )
        if run.is_dir() and not (run / "config.json").exists() and (run / "results.json").exists():
            raise ValueError(f"{run} is a folder of results, not a checkpoint; expected {run / 'results.json'}")
    if baseline is not None and not any(run.is_dir() for run in runs):
        raise ValueError(
            f"`baseline` is {baseline}, but {runs[0]} is a file, and its models cannot be measured here; expected a "
            "folder, or no `baseline`"
        )


@dataclasses.dataclass
class _Page:
    """The contents of a page.

    Attributes:
        runs, results: compressed checkpoints, and files of experiments.
        baseline: name of the dense model; None without one.
        dense: scores of the dense model.
        missing: missing measurements.
    """

    runs: list[Run]
    results: list[Results]
    baseline: str | None
    dense: Scores = dataclasses.field(default_factory=dict)
    missing: list[Missing] = dataclasses.field(default_factory=list)

    def measure(
        self,
        net: Checkpoint,
        scorers: Sequence[Scorer],
        glue: str | Path | None,
        latency: bool,
        progress: Progress | None,
    ) -> None:
        """Measure errors, spectra, scores and latency against the dense model."""
        spectra: dict[str, np.ndarray] = {}
        total, done = len(self.runs) * (3 if latency else 2) + 2, itertools.count()

        def advance(what: str) -> None:
            if progress is not None:
                progress(next(done), total, what)

        for run in self.runs:
            advance(f"errors and spectra: {run.label}")
            compare(run, net, self.baseline or "", spectra)
            run.dense_bytes = weight_bytes(net.source) or run.dense_bytes
        advance("scores of the dense model")
        chosen = [*scorers, *self._own_scorers(net, glue)]
        self.dense = self._scores(net, chosen, self.baseline or "")
        for run in self.runs:
            advance(f"scores: {run.label}")
            run.scores = self._scores(run.checkpoint, chosen, run.label)
        if not latency:
            self.missing.append(Missing("Latency", "it was not requested; leave out --no-latency."))
        for run in self.runs if latency else ():
            advance(f"latency: {run.label}")
            run.latency = measure_latency(net, run.checkpoint, seed=_SEED)
        advance("drawing")

    def _own_scorers(self, net: Checkpoint, glue: str | Path | None) -> Iterator[Scorer]:
        """Scorers for the task that the model was fine-tuned on, or else STS-B, if its data is found; and fidelity."""
        task = own_task(net.config_json)
        for what, make in (
            ("STS-B", functools.partial(stsb_scorer, net, glue))
            if task is None
            else (task.title, functools.partial(task_scorer, net, task, glue)),
            ("Fidelity", functools.partial(fidelity_scorer, net)),
        ):
            try:
                yield make()
            except (ValueError, OSError) as error:
                if glue is not None and isinstance(error, DataError):
                    raise
                self.missing.append(Missing(what, str(error)))

    def _scores(self, net: Checkpoint, scorers: Sequence[Scorer], label: str) -> Scores:
        scores: Scores = {}
        for scorer in scorers:
            try:
                scores |= scorer(net)
            except ValueError as error:
                self.missing.append(Missing(f"A score of {label}", str(error)))
        return scores

    def render(self) -> str:
        """The page as HTML."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("lpjax.report"),
            autoescape=True,  # names, paths and notes may come from anywhere
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= filters()
        numbers = itertools.count(1)  # keep the ids in the charts apart

        def chart(title: str, described: str, draw: Callable[..., None], *arguments: Any, note: str = "") -> Chart:
            return Chart(title, svg_of(draw, *arguments, number=next(numbers), title=described), note)

        runs, results = self.runs, self.results
        return environment.get_template("page.html").render(
            vars(self),
            title=", ".join(entry.label for entry in (*runs, *results)),
            score_names=list(dict.fromkeys([*self.dense, *(name for run in runs for name in run.scores)])),
            shapes=[(latency.batch, latency.length) for latency in runs[0].latency] if runs else [],
            measured=None if self.baseline is None else run_record(_SEED),
            score_charts=_score_charts(chart, runs, self.dense),
            spectra=[_spectra(chart, run) for run in runs],
            error_charts=[_error_charts(chart, run) for run in runs],
            result_charts=[_result_charts(chart, result) for result in results],
        )


def _without_baseline(runs: Sequence[Run]) -> Missing:
    names = " ".join(shlex.quote(run.name) for run in runs)
    sources = {run.record.source for run in runs}
    source = (sources.pop() if len(sources) == 1 else None) or "MODEL"
    return Missing(
        "Accuracy, errors in three norms, spectra and latency",
        "they need the dense model, and no --baseline was given. To measure them:",
        f"lpjax report {names} --baseline {shlex.quote(source)}",
    )


def _score_charts(chart: Callable[..., Chart], runs: Sequence[Run], dense: Scores) -> Charts:
    """Charts of every score against compression, with a point for each run."""
    charts = []
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        values = [(run.share, run.scores.get(name), i) for i, run in enumerate(runs)]
        if points := [point for point in values if point[1] is not None]:
            charts.append(chart(name, "score against compression", draw_scores, points, dense.get(name)))
    return Charts(charts, tuple((i, run.label) for i, run in enumerate(runs)), dense=True)


def _spectra(chart: Callable[..., Chart], run: Run) -> Charts:
    """Charts of the dense matrices' spectra, one for each kind."""
    charts = []
    for kind in run.kinds:
        layers = [
            (layer.record.rank, layer.spectrum.values)
            for layer in kind.leaves
            if layer.spectrum is not None and layer.record.rank is not None
        ]
        ranks, values = zip(*[(rank, values) for rank, values in layers if values[0] > 0] or [(0, ())], strict=True)
        if len(values[0]) > 1:
            note = f"the first {ranks[0]} of {len(values[0])} are kept"
            note = f"a line for each layer; {note}" if len(values) > 1 else note
            described = "singular values of the dense matrices"
            charts.append(chart(kind.name, described, draw_spectra, values, ranks, note=note))
    return Charts(charts)


def _error_charts(chart: Callable[..., Chart], run: Run) -> Charts:
    """Charts of errors against layer numbers, one for each norm; none if there are too few layers for lines."""
    kinds = [kind for kind in run.kinds if len(kind.layers) > 1]
    charts = []
    for norm, title in _NORMS.items():
        lines: dict[int, list[tuple[int, float]]] = {}
        for i, kind in enumerate(kinds):
            errors = [getattr(layer.errors, norm, None) for layer in kind.leaves]
            if line := [(n, error) for n, error in zip(kind.layers, errors, strict=True) if error is not None]:
                lines[i] = line
        if lines:
            charts.append(chart(title, "errors by layer", draw_errors, lines))
    keys = [(i, kind.after.strip("/").removesuffix("/kernel") or kind.name) for i, kind in enumerate(kinds)]
    return Charts(charts, tuple(keys))


def _result_charts(chart: Callable[..., Chart], results: Results) -> Charts:
    """Charts of scores against compression, one for each model, task, layers and score, with a line for each method."""
    labels = list(dict.fromkeys(cell.label for cell in results.cells))
    charts = []
    for panel in results.panels:
        curves: Mapping[int, list[tuple[float, float]]] = {
            i: sorted(
                (cell.compression, score)
                for cell in panel.cells
                if cell.label == label and (score := cell.value(panel.score)) is not None
            )
            for i, label in enumerate(labels)
        }
        if curves := {i: curve for i, curve in curves.items() if curve}:
            title = ", ".join(part for part in (panel.net, panel.task, panel.layers) if part) or panel.score
            drawing = (draw_curves, curves, panel.dense)
            charts.append(chart(title, "score against compression", *drawing, note=panel.score))
    return Charts(charts, tuple(enumerate(labels)), dense=True)
