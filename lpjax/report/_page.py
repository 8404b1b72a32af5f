"""The page: one HTML file with everything in it."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lpjax._extras import require
from lpjax._files.replacing import check_parent, check_regular
from lpjax._provenance import run_record
from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.documents import write_text
from lpjax.checkpoint.source import weight_bytes
from lpjax.checkpoint.targets import check_replaceable
from lpjax.evaluation.scores import Scorer, fidelity_scorer, stsb_scorer, task_scorer
from lpjax.glue.data import DataError
from lpjax.glue.labels import own_task
from lpjax.inspection import LeafRecord
from lpjax.report._cells import Results, read_results
from lpjax.report._figures import ERRORS, Drawer
from lpjax.report._latency import measure_latency
from lpjax.report._run import Found, Run, compare, name_apart, read_run

PAGE = "report.html"
_SEED = 0

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The dense net that runs are compared with.

    Attributes:
        checkpoint: the net.
        name: what the page calls it.
    """

    checkpoint: Checkpoint
    name: str


@dataclasses.dataclass(frozen=True)
class Missing:
    """What a page lacks, and why or how to get it."""

    what: str
    how: str
    command: str = ""


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
    """Write one self-contained HTML page of compressed nets: their accuracy, errors, ranks, sizes, speed and making.

    The page has its style and charts in it and loads nothing. It is written under a temporary name and renamed.

    Args:
        out: the file.
        runs: folders that `lpjax compress` wrote, and files of experiments: `results.json` of the demo, or JSON
            lines (see `read_results`).
        baseline: the dense net that all folders were made of. With it are measured: errors of each layer in three
            norms, spectra, fidelity, latency, and, where the data is found, the task that the net was fine-tuned on,
            or else STS-B by embeddings. Without it the page has what folders and records tell, and says what it lacks.
        scorers: further functions from a checkpoint to scores by name, called with the dense net and every folder's.
        glue: GLUE folder; by default as `load_examples` looks for it.
        latency: whether to time the nets.
        overwrite: replace `out` if it is there.
        progress: called with (steps done, steps in all, what is next).

    Returns:
        What was not measured, and how it can be.

    Raises:
        FileExistsError: `out` is there and may not be replaced.
        FileNotFoundError: a run is no folder and no file.
        ValueError: no run; a damaged folder or record, with file and key; a baseline of another net, or factored; or
            `glue` is given and has no STS-B.
    """
    out = Path(out)
    check_page(out, overwrite)
    if not runs:
        raise ValueError("`runs` is empty; expected folders that `lpjax compress` wrote, or files of experiments")
    loaded: list[tuple[Run, Checkpoint]] = []
    results: list[Results] = []
    for run in runs:
        if Path(run).is_dir():
            loaded.append(read_run(run))
        elif Path(run).exists():
            results.append(read_results(run))
        else:
            raise FileNotFoundError(f"there is no {run}; expected a folder that `lpjax compress` wrote, or a record")
    folders = [run for run, _ in loaded]
    name_apart(folders)
    missing: list[Missing] = []
    dense: Found = {}
    if baseline is not None and loaded:
        dense = _measure(loaded, baseline, scorers, glue, latency, missing, progress)
    elif loaded:
        missing.append(_without_baseline(folders))
    write_text(out, _render(folders, results, baseline if loaded else None, dense, missing))
    return missing


def check_page(out: Path, overwrite: bool) -> None:
    """Refuse to write a page where there is something else.

    Raises:
        FileExistsError, FileNotFoundError, PermissionError: as said.
    """
    require("report", "a report page")
    if out.is_dir() or (out.exists() and not overwrite):
        hint = "" if out.is_dir() else ", or --force to replace it"
        raise FileExistsError(f"{out} exists; choose another name with --out{hint}")
    check_replaceable(out, "page of lpjax report")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out} can't be written, for there is no folder {out.parent}")
    check_regular(out)
    check_parent(out.resolve())


def _measure(
    loaded: Sequence[tuple[Run, Checkpoint]],
    baseline: Baseline,
    scorers: Sequence[Scorer],
    glue: str | Path | None,
    latency: bool,
    missing: list[Missing],
    progress: Progress | None,
) -> Found:
    """Fill in what the dense net tells of the runs, and return its own scores."""
    net = baseline.checkpoint
    records: dict[str, LeafRecord] = {}
    total, done = len(loaded) * (4 if latency else 3) + 1, 0

    def advance(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    for run, checkpoint in loaded:
        advance(f"errors and spectra: {run.label}")
        compare(run, checkpoint, net, baseline.name, records)
        run.dense_bytes = weight_bytes(net.source) or run.dense_bytes
    advance("scores of the dense net")
    chosen = list(scorers)
    task = own_task(net.config_json)
    for what, make in (
        ("STS-B", functools.partial(stsb_scorer, net, glue))
        if task is None
        else (task.title, functools.partial(task_scorer, net, task, glue)),
        ("Fidelity", functools.partial(fidelity_scorer, net)),
    ):
        try:
            chosen.append(make())
        except (ValueError, OSError) as error:
            if glue is not None and isinstance(error, DataError):
                raise
            missing.append(Missing(what, str(error)))
    dense = _scores(net, chosen, baseline.name, missing)
    for run, checkpoint in loaded:
        advance(f"scores: {run.label}")
        run.scores = _scores(checkpoint, chosen, run.label, missing)
    if not latency:
        missing.append(Missing("Latency", "it was not asked for; leave out --no-latency."))
    for run, checkpoint in loaded if latency else ():
        advance(f"latency: {run.label}")
        run.latency = measure_latency(net, checkpoint, seed=_SEED)
    advance("drawing")
    return dense


def _scores(net: Checkpoint, scorers: Sequence[Scorer], label: str, missing: list[Missing]) -> Found:
    found: Found = {}
    for scorer in scorers:
        try:
            found |= scorer(net)
        except ValueError as error:
            missing.append(Missing(f"A score of {label}", str(error)))
    return found


def _without_baseline(runs: Sequence[Run]) -> Missing:
    names = " ".join(shlex.quote(run.name) for run in runs)
    sources = list(dict.fromkeys(run.record.source for run in runs))
    source = sources[0] if len(sources) == 1 and sources[0] else "MODEL"
    return Missing(
        "Accuracy, errors in three norms, spectra and latency",
        "they need the dense net, and no --baseline was given. To measure them:",
        f"lpjax report {names} --baseline {shlex.quote(source)}",
    )


def _render(
    runs: Sequence[Run], results: Sequence[Results], baseline: Baseline | None, dense: Found, missing: Sequence[Missing]
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from lpjax.report._text import FILTERS

    environment = Environment(
        loader=PackageLoader("lpjax.report"),
        autoescape=True,  # names, paths and notes are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    drawer = Drawer()
    context: dict[str, Any] = {
        "title": ", ".join([run.label for run in runs] + [one.label for one in results]),
        "runs": runs,
        "results": results,
        "baseline": None if baseline is None else baseline.name,
        "dense": dense,
        "score_names": list(dict.fromkeys([*dense, *(name for run in runs for name in run.scores)])),
        "shapes": [(one.batch, one.length) for one in runs[0].latency or ()] if runs else [],
        "missing": missing,
        "norms": ERRORS,
        "measured": run_record(_SEED) if baseline is not None else None,
        "score_charts": drawer.scores(runs, dense),
        "spectra": [drawer.spectra(run) for run in runs],
        "error_charts": [drawer.errors(run) for run in runs],
        "result_charts": [drawer.results(one) for one in results],
    }
    return environment.get_template("page.html").render(context)
