"""Prediction of the error at given sizes, before anything is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lpjax._tree import leaves_with_paths
from lpjax.allocation._bytes import Progress, kinds_of, sketched
from lpjax.allocation._size import checked_size
from lpjax.allocation._sizes import MARGIN
from lpjax.select import Select
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import Weighting


class PredictedSize(NamedTuple):
    """The predicted error at a size.

    Attributes:
        size: size of the file of weights, in bytes.
        step: rounding step, as in `Choice.step`.
        error: with statistics, the mean over their texts of the squared change of the outputs along the directions u of
            `calibrate`, which to second order is twice the divergence of embeddings or classes; without, the mean
            relative squared error of the rounded matrices.
    """

    size: float
    step: float
    error: float


def predict_sizes(
    params: Any,
    sizes: Sequence[float | str],
    *,
    statistics: Calibration | None = None,
    weighting: str | Weighting | None = None,
    select: Select | None = None,
    other_bytes: int = 0,
    progress: Progress | None = None,
) -> list[PredictedSize]:
    """Predict the error at each size from the entropy and the rounding of some rows of each matrix.

    Nothing is compressed. Steps are within a few percent of those of `plan_for_size`. Errors are those of the matrices
    in `statistics`, on the calibration texts and with the damping of rounding; on other texts they are larger, the more
    so the fewer texts these were.

    Args:
        params, statistics, weighting, select, other_bytes, progress: as for `plan_for_size`.
        sizes: as its `size`.

    Raises:
        ValueError: as `plan_for_size`.
    """
    checked = [checked_size(params, size, statistics, weighting, select, other_bytes) for size in sizes]
    if not checked:
        raise ValueError("`sizes` is empty; expected at least one size, such as 9MB or 10%")
    tree, paths = dict(leaves_with_paths(params)), checked[0][0]
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, len(paths), what)
        done += 1

    known = sketched(tree, paths, statistics, weighting, other_bytes, kinds_of(tree, paths), tell)
    scale = 1 / len(known.sizes.paths) if statistics is None else statistics.tokens / statistics.texts
    predictions = []
    for _, limit in checked:
        step = known.sizes.step_of(MARGIN * limit - known.fixed, limit, known.fixed)
        predictions.append(PredictedSize(limit, step, scale * known.sizes.error(step, relative=statistics is None)))
    return predictions
