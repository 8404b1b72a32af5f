"""Statistics for --calibrate: from a file of statistics, or computed from texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpjax.cli._errors import misuse
from lpjax.cli._output import progress

if TYPE_CHECKING:
    from lpjax.allocation import Request
    from lpjax.checkpoint import Checkpoint
    from lpjax.glue.texts import Texts
    from lpjax.weighting import Calibration

MOST_TEXTS = 4000
"""Default for the largest number of texts to calibrate on."""


def is_statistics(source: Path) -> bool:
    """Whether a file holds statistics of `lpjax calibrate`, judged by its name."""
    return source.suffix == ".safetensors"


def statistics_and_measure(
    source: Path | None, request: Request, checkpoint: Checkpoint, model: str
) -> tuple[Calibration | None, Any]:
    """The statistics for a request's layers, and the divergence to measure if the request allocates ranks by it."""
    import lpjax
    from lpjax._tree import leaves_with_paths
    from lpjax.glue.texts import TextSource, hold_out_texts, spaced
    from lpjax.weighting.provenance import check_same_net
    from lpjax.weighting.weightings import leaf_metrics, weighting_named

    if source is None:
        return None, None
    select = request.layers(checkpoint.params)
    if is_statistics(source):
        with misuse():
            statistics = lpjax.load_calibration(source)
            check_same_net(statistics, checkpoint, source)
            leaves = {path: leaf for path, leaf in leaves_with_paths(checkpoint.params) if select(path, leaf)}
            leaf_metrics(statistics, request.weighting, leaves)
        return statistics, None
    with misuse():
        texts = TextSource(text=source).load()
    measure = None
    if request.measured:
        held, others = hold_out_texts(texts.first)  # also for a plan, whose statistics came from the other texts
        texts = texts._replace(first=others)
        measure = lpjax.Divergence(checkpoint, held) if request.plan is None else None
    texts = texts._replace(first=[texts.first[i] for i in spaced(len(texts.first), MOST_TEXTS)])
    gradients = weighting_named(request.weighting).wants_gradients
    return calibrate_on(checkpoint, texts, model=model, select=select, gradients=gradients), measure


def calibrate_on(checkpoint: Checkpoint, texts: Texts, *, model: str, **options: Any) -> Calibration:
    """A calibration on texts, with its provenance; `options` are those of `lpjax.calibrate`."""
    import lpjax
    from lpjax.weighting.provenance import with_provenance

    source, first, second, _ = texts
    with progress() as advance:
        calibration = lpjax.calibrate(
            checkpoint, first, second,
            progress=lambda done, total: advance(done, total, f"calibrating on {source}"), **options,
        )  # fmt: skip
    return with_provenance(calibration, checkpoint, first, second, model=model, source=source)
