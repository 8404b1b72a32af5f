"""Weightings: maps from the statistics of a matrix to the weights of its objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from lpjax._check import check_name
from lpjax._tree import is_table
from lpjax.weighting.metric import Metric, Metrics
from lpjax.weighting.statistics import Calibration, Statistics

Inputs = Literal["none", "moment", "magnitude", "fisher"]
Outputs = Literal["none", "moment"]
Tokens = Literal["none", "counts", "gradients"]


@dataclasses.dataclass(frozen=True)
class Weighting:
    """The weighted objective of a matrix W that takes x to xW: ‖H^{1/2} (W − LR) G^{1/2}‖ in the solver's norm.

    H is a metric of the inputs, G one of the outputs, each a power of a statistic. With H = mean x xᵀ and
    G = mean g gᵀ, for the gradient g of the model's output with respect to xW, and independent x and g, the squared
    objective in the Frobenius norm is the mean of (gᵀ(W − LR)ᵀx)²: the effect on the output to first order (K-FAC,
    Martens & Grosse, arXiv 1503.05671, §3). The input of a table selects one row, so H is diagonal and counts the
    tokens of each row. For p ≠ 2 the solver's rows are those of the weighted matrix, the outputs of a kernel. The
    diagonal H of a table gives the solver's row weights instead: (Σ_i h_i ‖G^{1/2}(a_i − l_i R)‖^p)^{1/p}.

    Known methods are special cases; see `WEIGHTINGS`.

    Attributes:
        inputs: statistic of a kernel's inputs: "moment", mean x xᵀ; "magnitude", the squares of mean |x|; "fisher",
            the sums of squared gradients; or "none".
        inputs_power: exponent of the inputs' statistic.
        outputs: statistic of the outputs, of kernels and tables: "moment", mean g gᵀ, or "none".
        outputs_power: exponent of the outputs' statistic.
        tokens: statistic of a table's rows: "counts", "gradients" (the sum of ‖g‖²), or "none".
        tokens_power: exponent of the rows' statistic.
        smoothing: number added to each count, as tokens that are missing in the calibration may occur later; for
            "gradients", in multiples of their mean per token.
        shrinkage: multiple of its mean eigenvalue that is added to a metric (not to tokens, which have `smoothing`):
            few samples estimate the smallest eigenvalues badly, and errors in the null space of a singular metric would
            be unbounded.

    Raises:
        ValueError: an unknown statistic, a power outside [0, 2], a smoothing or shrinkage below 0.
    """

    inputs: Inputs = "moment"
    inputs_power: float = 1.0
    outputs: Outputs = "moment"
    outputs_power: float = 1.0
    tokens: Tokens = "counts"
    tokens_power: float = 1.0
    smoothing: float = 1.0
    shrinkage: float = 1e-3

    @property
    def wants_gradients(self) -> bool:
        """Whether it needs statistics of a backward pass."""
        outputs = self.outputs == "moment" and self.outputs_power
        return bool(outputs or (self.inputs == "fisher" and self.inputs_power)
                    or (self.tokens == "gradients" and self.tokens_power))  # fmt: skip

    def weights(self, *, table: bool) -> bool:
        """Whether it weights tables, or kernels."""
        kind, power = (self.tokens, self.tokens_power) if table else (self.inputs, self.inputs_power)
        return bool((kind != "none" and power) or (self.outputs != "none" and self.outputs_power))

    @property
    def compares_layers(self) -> bool:
        """Whether it estimates the loss in a model's outputs, so that errors of its matrices are comparable."""
        used = (self.inputs, self.inputs_power, self.outputs, self.outputs_power, self.tokens, self.tokens_power)
        return used == ("moment", 1, "moment", 1, "counts", 1)

    def __post_init__(self) -> None:
        for name, known in (("inputs", Inputs), ("outputs", Outputs), ("tokens", Tokens)):
            check_name(name, getattr(self, name), get_args(known))
            power = getattr(self, f"{name}_power")
            if not 0 <= power <= 2:
                raise ValueError(f"`{name}_power` is {power!r}; expected a number from 0 to 2")
        for name in ("smoothing", "shrinkage"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; expected a finite number, 0 or more")


_NONE = Weighting("none", 0, "none", 0, "none", 0, shrinkage=0)
WEIGHTINGS: dict[str, Weighting] = {
    "none": _NONE,
    "counts": dataclasses.replace(_NONE, tokens="counts", tokens_power=1),
    "drone": dataclasses.replace(_NONE, inputs="moment", inputs_power=1, shrinkage=1e-3),
    "asvd": dataclasses.replace(_NONE, inputs="magnitude", inputs_power=0.5),
    "fwsvd": dataclasses.replace(_NONE, inputs="fisher", inputs_power=1, tokens="gradients", tokens_power=1),
    "gauss_newton": Weighting(),
}
"""Weightings by name: "none", as in the plain SVD; "counts", rows of tables by token counts; "drone", inputs by
their second moment (DRONE, Chen et al., NeurIPS 2021, and SVD-LLM, arXiv 2403.07378); "asvd", inputs by (mean |x|)^½
(ASVD, arXiv 2312.05821); "fwsvd", rows of W by Fisher information (FWSVD, arXiv 2207.00112); "gauss_newton", all."""

DEFAULT = "gauss_newton"


def weighting_named(weighting: str | Weighting) -> Weighting:
    """The `Weighting` of a name; a `Weighting` is returned unchanged.

    Raises:
        ValueError: the name is not in `WEIGHTINGS`.
    """
    if isinstance(weighting, Weighting):
        return weighting
    check_name("weighting", weighting, WEIGHTINGS)
    return WEIGHTINGS[weighting]


def check_weighting(weighting: str | Weighting | None, *, calibrated: bool) -> None:
    """Refuse an unknown weighting, and any weighting without statistics.

    Raises:
        ValueError: naming it.
    """
    if weighting is None:
        return
    weighting_named(weighting)
    if not calibrated:
        raise ValueError(
            f"`weighting` is {weighting!r}, which needs `statistics` (see `lpjax.calibrate`); pass `statistics`, or "
            "omit `weighting`"
        )


def require_comparable(weighting: str | Weighting | None, what: str) -> None:
    """Refuse a weighting under which errors of layers are not comparable.

    Args:
        weighting: `Weighting`, its name, or None for unweighted errors.
        what: what needs comparable errors, for the message.

    Raises:
        ValueError: naming it.
    """
    if weighting is not None and not weighting_named(weighting).compares_layers:
        raise ValueError(
            f"`weighting` is {weighting!r}; {what} needs {DEFAULT}, under which errors of layers are comparable"
        )


def require_statistics(statistics: Calibration, paths: Iterable[str]) -> None:
    """Refuse statistics that lack a matrix.

    Raises:
        ValueError: naming the first few.
    """
    if missing := [path for path in paths if path not in statistics.statistics]:
        raise ValueError(
            f"`statistics` has no statistics of {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; "
            "calibrate with the same `select`"
        )


def leaf_metrics(statistics: Calibration, weighting: str | Weighting, leaves: Mapping[str, Any]) -> dict[str, Metrics]:
    """path -> metrics of each leaf under a weighting, in the model's orientation.

    Raises:
        ValueError: `statistics` lack a leaf or a needed statistic, are not finite, or are those of another model.
    """
    weighting = weighting_named(weighting)
    require_statistics(statistics, leaves)
    metrics = {}
    for path, leaf in leaves.items():
        known, shape = statistics.statistics[path], tuple(leaf.shape)
        if len(shape) != 2:
            raise ValueError(
                f"`statistics` applies to matrices, but {path} has shape {shape}; compress it without `statistics`"
            )
        for field in dataclasses.fields(known):
            value = getattr(known, field.name)
            size = shape[1] if field.name == "outputs" else shape[0]
            if isinstance(value, np.ndarray) and set(value.shape) != {size}:
                shapes = f"`{field.name}` of {path} has shape {value.shape}, the leaf {shape}"
                raise ValueError(f"`statistics` belongs to another model: {shapes}")
        if name := known.not_finite():
            raise ValueError(f"`{name}` of {path} in `statistics` is not finite; calibrate a model whose weights are")
        metrics[path] = metrics_of(known, weighting, is_table(path))
    return metrics


def scale_of_errors(statistics: Statistics, table: bool) -> float:
    """The factor from squared errors under the default metrics, whose mean eigenvalue is 1, to sums over all tokens.

    The result is in units of the model's outputs. Smoothing moves weight between rows and adds none. The factor is 0
    for a matrix without inputs, or on which no output depends.
    """
    assert statistics.outputs is not None
    into = statistics.counts if table else statistics.inputs
    assert into is not None
    each = into if table else np.diagonal(into)
    scale = float(np.mean(each, dtype=np.float64) * np.mean(np.diagonal(statistics.outputs), dtype=np.float64))
    return scale if table else statistics.tokens * scale  # for tables, statistics are sums


def metrics_of(statistics: Statistics, weighting: Weighting, table: bool) -> Metrics:
    """The metrics of one matrix in the model's orientation, (inputs, outputs).

    Raises:
        ValueError: `weighting` needs a statistic that is missing, such as gradients after a forward pass alone.
    """

    def need(name: str) -> np.ndarray:
        value = getattr(statistics, name)
        if value is None:
            forward = name in ("inputs", "magnitude", "counts")
            hint = "" if forward else ": calibrate with `gradients=True`, without --forward-only"
            raise ValueError(f"`statistics` has no `{name}`, which the weighting needs{hint}")
        return np.asarray(value)

    def metric(base: np.ndarray, power: float, shrinkage: float) -> Metric | None:
        return Metric(base, np.asarray(shrinkage), power) if base.any() else None

    outputs = None
    if weighting.outputs == "moment" and weighting.outputs_power:
        outputs = metric(need("outputs"), weighting.outputs_power, weighting.shrinkage)
    kind, power = weighting.inputs, weighting.inputs_power
    if table:
        kind, power = weighting.tokens, weighting.tokens_power
    if kind == "none" or not power:
        return Metrics(None, outputs)
    if kind == "counts":
        return Metrics(metric(need("counts") + weighting.smoothing, power, 0), outputs)
    if kind == "gradients":
        gradients = need("gradients")
        typical = gradients.sum() / max(need("counts").sum(), 1)
        return Metrics(metric(gradients + weighting.smoothing * typical, power, 0), outputs)
    base = {"moment": "inputs", "magnitude": "magnitude", "fisher": "fisher"}[kind]
    return Metrics(metric(need(base) ** (2 if kind == "magnitude" else 1), power, weighting.shrinkage), outputs)
