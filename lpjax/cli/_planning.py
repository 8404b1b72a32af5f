"""What `lpjax compress` is asked for, as a plan, and the text that it weights errors by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpjax.cli._calibrate import MOST_TEXTS, calibrate_on, check_weights
from lpjax.cli._common import misuse, progress
from lpjax.cli._texts import read_texts, spaced

if TYPE_CHECKING:
    from lpjax.checkpoint import Checkpoint
    from lpjax.compression import BreakEven
    from lpjax.compression.plan import Plan
    from lpjax.weighting import Calibration

_HELD_OUT = 128
"""Texts at most that ranks are chosen by, and that the weights know nothing of."""


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command that decide what becomes of each layer.

    Attributes:
        select: patterns of layers; None if a plan names them.
        keep, rank, budget, plan: one of them.
        budget_of, allocation: of `budget`.
        solver, p, sparse_share: None for the defaults, or if a plan gives them.
        source: text or statistics to weight errors by; None for unweighted errors.
        weighting: by the default or the plan's if none was given; None without a source.
        timings: of `lpjax bench`.
        options: of the solver.
    """

    select: Sequence[str] | None
    keep: float | None
    rank: int | None
    budget: float | None
    plan: Plan | None
    budget_of: str
    allocation: str | None
    solver: str | None
    p: float | None
    sparse_share: float | None
    source: Path | None
    weighting: str | None
    timings: BreakEven | None
    options: dict[str, Any]

    @property
    def uniform(self) -> dict[str, Any]:
        """Arguments of `lpjax.uniform_plan`, but for the layers."""
        return {
            "keep": self.keep,
            "rank": self.rank,
            "solver": self.solver,
            "p": self.p,
            "sparse_share": self.sparse_share,
            "weighting": self.weighting,
            "break_even": self.timings,
        }

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of `lpjax.allocate`, but for the layers, the statistics and the measure."""
        from lpjax.compression.defaults import default_allocation, default_method

        calibrated = self.source is not None
        return {
            "budget": self.budget,
            "budget_of": self.budget_of,
            "allocation": self.allocation or default_allocation(self.weighting),
            "methods": [default_method(self.solver, self.p, calibrated=calibrated)],
            "sparse_share": self.sparse_share,
            "weighting": self.weighting,
            "break_even": self.timings,
        }

    @property
    def measured(self) -> bool:
        """Whether ranks are, or were, chosen by running the net."""
        return "measured" in (self.allocation, self.plan and self.plan.allocation)


def make_request(**given: Any) -> Request:
    """The request, checked as far as it can be without the net.

    Args:
        **given: fields of `Request`; `weighting` as the user gave it.

    Raises:
        ValueError: an argument out of range, or arguments that do not go together.
    """
    from lpjax.allocation import check_allocation
    from lpjax.compression import check_method, check_only_plan, check_uniform
    from lpjax.compression.defaults import LAYERS, LAYERS_OF_BUDGET, default_weighting
    from lpjax.weighting.weightings import check_weighting

    request = Request(**given)
    if sum(value is not None for value in (request.keep, request.rank, request.budget, request.plan)) != 1:
        raise ValueError("expected exactly one of --keep, --rank, --budget and --plan, e.g. --keep 0.72")
    if request.budget is None and request.allocation is not None:
        raise ValueError("--allocation says how a --budget is shared out; give a --budget, too")
    if request.plan is not None:
        check_only_plan(select=request.select, solver=request.solver, p=request.p, sparse_share=request.sparse_share)
        check_method("svd", 2.0, **request.options)
    weighting: Any = request.weighting or (request.plan and request.plan.weighting)
    calibrated = request.source is not None
    check_weighting(weighting, calibrated=calibrated)
    weighting = default_weighting(weighting, calibrated=calibrated)
    if request.plan is not None:
        plan = dataclasses.replace(request.plan, weighting=weighting)
        return dataclasses.replace(request, weighting=weighting, plan=plan)
    select = request.select or (LAYERS if request.budget is None else LAYERS_OF_BUDGET)
    request = dataclasses.replace(request, weighting=weighting, select=list(select))
    if request.budget is None:
        check_uniform(**request.uniform, **request.options)
    else:
        check_allocation(**request.shared, **request.options)
    if request.measured and (request.source is None or _is_statistics(request.source)):
        raise ValueError("--allocation measured needs text to measure on: name some by --calibrate")
    return request


def plan_before_text(request: Request, checkpoint: Checkpoint) -> Plan | None:
    """The plan, checked against the net; None for a budget, which is shared out once there are statistics.

    Raises:
        ValueError: patterns match nothing, no layer would get smaller, the budget is too small, or the plan is of
            another net.
    """
    import lpjax
    from lpjax.allocation import require_budget
    from lpjax.select import select_paths

    params = checkpoint.params
    if request.budget is not None:
        paths = select_paths(params, request.select or ())
        _check_layers_weighted(request, paths)
        require_budget(params, request.budget, request.budget_of, paths_pattern(paths), request.timings)
        return None
    plan = request.plan or lpjax.uniform_plan(params, select=request.select, **request.uniform)
    plan.check_layers(params)
    _check_layers_weighted(request, plan.layers)
    _check_smaller(request, plan, params)
    return plan


def _check_smaller(request: Request, plan: Plan, params: Any) -> None:
    """Refuse a plan by which no layer gets smaller."""
    reasons = plan.unchanged(params)
    if len(reasons) == len(plan.layers):
        goals = {"keep": request.keep, "rank": request.rank, "budget": request.budget}
        goal = next((f"`{name}` is {value:g}" for name, value in goals.items() if value is not None), "`plan`")
        notes = "; ".join([*dict.fromkeys(reasons.values())][:3])
        raise ValueError(f"{goal}: no layer gets smaller: {notes}")


def paths_pattern(paths: Iterable[str]) -> Any:
    """A pattern that selects the paths."""
    chosen = set(paths)
    return lambda path, _: path in chosen


def _check_layers_weighted(request: Request, paths: Iterable[str]) -> None:
    """Refuse a weighting that has no weights for any of the layers."""
    from lpjax.select import is_table
    from lpjax.weighting.weightings import WEIGHTINGS, weighting_named

    if request.weighting in (None, "none"):
        return
    kinds = {is_table(path) for path in paths}
    if any(weighting_named(request.weighting).weights(table=table) for table in kinds):
        return
    what = "embeddings" if kinds == {True} else "kernels"
    others = [name for name, other in WEIGHTINGS.items() if any(other.weights(table=table) for table in kinds)]
    raise ValueError(
        f"--weighting {request.weighting} has no weights for {what}, and no other layers are selected; expected "
        f"{', '.join(others)}, or other --layers"
    )


def statistics_and_plan(
    request: Request, plan: Plan | None, checkpoint: Checkpoint, model: str
) -> tuple[Calibration | None, Plan]:
    """The statistics of the request's text, and the plan, which tells where it came from.

    Raises:
        ValueError: statistics of another net, or without what the weighting needs.
    """
    import lpjax
    from lpjax._provenance import run_record
    from lpjax.select import select_paths

    select = paths_pattern(select_paths(checkpoint.params, request.select or ()) if plan is None else plan.layers)
    statistics, measure = _statistics(request, checkpoint, model, select)
    if plan is None:
        with progress() as advance:
            plan = lpjax.allocate(
                checkpoint.params, select=select, statistics=statistics, measure=measure, progress=advance,
                **request.shared, **request.options,
            )  # fmt: skip
        _check_smaller(request, plan, checkpoint.params)
    provenance: dict[str, Any] = {"model": model, **run_record(None)}
    if statistics is not None:
        provenance["calibration"] = origin(statistics)
    return statistics, dataclasses.replace(plan, provenance=provenance)


def _statistics(request: Request, checkpoint: Checkpoint, model: str, select: Any) -> tuple[Calibration | None, Any]:
    """What the request's text says of the layers, and what measures a net by it, if ranks are to be measured."""
    import lpjax
    from lpjax.select import leaves_with_paths
    from lpjax.weighting import load_calibration
    from lpjax.weighting.weightings import leaf_metrics, weighting_named

    if request.source is None or request.weighting is None:
        return None, None
    if _is_statistics(request.source):
        with misuse():
            statistics = load_calibration(request.source)
            check_weights(statistics, checkpoint, request.source)
            leaves = {path: leaf for path, leaf in leaves_with_paths(checkpoint.params) if select(path, leaf)}
            leaf_metrics(statistics, request.weighting, leaves)
        return statistics, None
    name, lines = read_texts(request.source)
    measure = None
    if request.measured:
        held, lines = _hold_out(lines)  # for a plan, too: its weights are those of the other texts
        measure = lpjax.Divergence(checkpoint, held) if request.plan is None else None
    with progress() as advance:
        statistics = calibrate_on(
            checkpoint, name, lines, None, None, MOST_TEXTS, advance, model=model, select=select,
            gradients=weighting_named(request.weighting).wants_gradients,
        )  # fmt: skip
    return statistics, measure


def origin(calibration: Calibration) -> dict[str, str]:
    """Where a calibration came from, for the record."""
    told = {key: calibration.provenance[key] for key in ("model", "source", "sha256") if key in calibration.provenance}
    return {key: str(value) for key, value in told.items()} | {
        key: str(getattr(calibration, key)) for key in ("texts", "tokens", "target", "seed")
    }


def _hold_out(lines: list[str]) -> tuple[list[str], list[str]]:
    """Evenly spaced texts to choose ranks by, at most a fifth of all, and the others; of fewer than five all, twice."""
    if len(lines) < 5:
        return lines, lines
    places = set(spaced(len(lines), min(_HELD_OUT, len(lines) // 5)))
    return [lines[i] for i in sorted(places)], [line for i, line in enumerate(lines) if i not in places]


def _is_statistics(source: Path) -> bool:
    return source.suffix == ".safetensors"
