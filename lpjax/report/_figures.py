"""Which charts a page has, and the names around them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lpjax.report._cells import Results
from lpjax.report._charts import curves_chart, errors_chart, score_chart, spectra_chart
from lpjax.report._run import Found, Run
from lpjax.report._svg import inline

if TYPE_CHECKING:
    from markupsafe import Markup

ERRORS = {
    "frobenius": "Frobenius error, ‖A − LR‖ / ‖A‖",
    "entries": "error of entries, ℓ1",
    "rows": "error of rows, (2,1)",
}


class Chart(NamedTuple):
    """An SVG with what stands above and below it; `title` and `note` are texts, to be escaped."""

    title: str
    svg: Markup
    note: str = ""


class Key(NamedTuple):
    """A line of a legend: number of the series, and what it is."""

    number: int
    text: str


class Charts(NamedTuple):
    """Charts that share a legend."""

    charts: tuple[Chart, ...]
    keys: tuple[Key, ...] = ()
    dense: bool = False


class Drawer:
    """Draws a page's charts and numbers them, so that the ids in them differ."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def _chart(self, title: str, svg: str, described: str, note: str = "") -> Chart:
        from markupsafe import Markup

        # Made of numbers and this module's own words by matplotlib, which escapes both.
        return Chart(title, Markup(inline(svg, next(self._numbers), described)), note)

    def scores(self, runs: Sequence[Run], dense: Found) -> Charts:
        """Every score against compression, a point a run."""
        charts = []
        for name in dict.fromkeys(name for run in runs for name in run.scores):
            found = [(run.share, run.scores.get(name), i) for i, run in enumerate(runs)]
            points = [(share, score, i) for share, score, i in found if score is not None]
            if points:
                charts.append(self._chart(name, score_chart(points, dense.get(name)), "score against compression"))
        return Charts(tuple(charts), tuple(Key(i, run.label) for i, run in enumerate(runs)), dense=True)

    def spectra(self, run: Run) -> Charts:
        """Spectra of the dense matrices, a chart for each kind."""
        charts = []
        for kind, layers in run.kinds:
            known = [layer for layer in layers if layer.spectrum is not None and layer.spectrum.values[0] > 0]
            if not known or len(known[0].spectrum.values) < 2:  # pyright: ignore[reportOptionalMemberAccess]
                continue
            values = [layer.spectrum.values for layer in known if layer.spectrum is not None]
            svg = spectra_chart(values, [layer.rank for layer in known if layer.rank is not None])
            lines = "a line for each layer; " if len(known) > 1 else ""
            note = f"{lines}kept are the first {known[0].rank} of {len(values[0])}"
            charts.append(self._chart(kind.name, svg, "singular values of the dense matrices", note))
        return Charts(tuple(charts))

    def errors(self, run: Run) -> Charts:
        """Errors against the layers' numbers, a chart for each norm; none where there are too few layers for lines."""
        kinds = [(kind, layers) for kind, layers in run.kinds if len(kind.layers) > 1]
        charts = []
        for norm, title in ERRORS.items():
            lines = {}
            for i, (kind, layers) in enumerate(kinds):
                found = [(n, getattr(x.errors, norm)) for n, x in zip(kind.layers, layers, strict=True) if x.errors]
                lines[i] = [(n, error) for n, error in found if error is not None]
            lines = {i: line for i, line in lines.items() if line}
            if lines:
                charts.append(self._chart(title, errors_chart(lines), "errors by layer"))
        keys = tuple(Key(i, _short(kind.after) or kind.name) for i, (kind, _) in enumerate(kinds))
        return Charts(tuple(charts), keys if charts else ())

    def results(self, results: Results) -> Charts:
        """A score against compression, a chart for each net, task, layers and score; a line a method."""
        labels = list(dict.fromkeys(cell.label for cell in results.cells))
        charts = []
        for panel in results.panels:
            lines: dict[int, list[tuple[float, float]]] = {}
            for cell in panel.cells:
                score = cell.scores.get(panel.score)
                if score is not None:
                    lines.setdefault(labels.index(cell.label), []).append((cell.compression, score))
            if lines:
                ordered = {i: sorted(lines[i]) for i in sorted(lines)}
                title = ", ".join(part for part in (panel.net, panel.task, panel.layers) if part)
                svg = curves_chart(ordered, panel.dense)
                charts.append(self._chart(title or panel.score, svg, "score against compression", panel.score))
        return Charts(tuple(charts), tuple(Key(i, label) for i, label in enumerate(labels)), dense=True)


def _short(after: str) -> str:
    """What tells a kind of matrix from the others of its layer."""
    return after.strip("/").removesuffix("/kernel")
