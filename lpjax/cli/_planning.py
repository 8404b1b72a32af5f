"""What `lpjax compress` is asked for, and what it then makes of each layer."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lpjax._check import check_whole
from lpjax.cli._calibrate import MOST_TEXTS, calibrate_on, check_weights
from lpjax.cli._common import misuse, progress, split_patterns
from lpjax.cli._texts import read_texts, spaced

if TYPE_CHECKING:
    from lpjax.checkpoint import Checkpoint
    from lpjax.compression import LayerRecord
    from lpjax.compression.latency import BreakEven
    from lpjax.compression.plan import Plan
    from lpjax.weighting.statistics import Calibration

_HELD_OUT = 128
"""Texts at most that ranks are chosen by, and that the weights know nothing of."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What was asked for, checked as far as it can be without the net.

    Attributes:
        patterns: which layers; None where a plan names them.
        keep, rank, budget: one of them, or `plan`.
        budget_of: of `budget`.
        allocation: how that is, or that of the plan was, shared out; None without.
        plan: what is to be replayed.
        method, p: of the solver, but for a plan.
        sparse: share of each pair that single entries get; None for the default.
        source: text, or statistics; None for no calibration.
        weighting: by what of it.
        options: of the solver.
    """

    patterns: tuple[str, ...] | None
    keep: float | None
    rank: int | None
    budget: float | None
    budget_of: str
    allocation: str | None
    plan: Plan | None
    method: str
    p: float
    sparse: float | None
    source: Path | None
    weighting: str
    options: dict[str, Any]


def make_wish(
    *,
    layers: str | None,
    keep: float | None,
    rank: int | None,
    budget: float | None,
    budget_of: str,
    allocation: str | None,
    plan: Path | None,
    method: str | None,
    p: float | None,
    sparse: float | None,
    break_even: Path | None,
    calibrate: Path | None,
    weighting: str | None,
    num_iters: int | None,
    tol: float | None,
) -> Wish:
    """The options of the command, as one.

    Raises:
        ValueError: what can't be meant, naming the options.
    """
    from lpjax._defaults import LAYERS, LAYERS_OF_BUDGET, default_allocation, default_method
    from lpjax.allocation import Allocation
    from lpjax.compression import load_plan
    from lpjax.compression.plan import Costs
    from lpjax.solvers import SOLVERS
    from lpjax.weighting.weightings import DEFAULT, WEIGHTINGS

    goals = {"--keep": keep, "--rank": rank, "--budget": budget, "--plan": plan}
    if sum(value is not None for value in goals.values()) != 1:
        raise ValueError("expected exactly one of --keep, --rank, --budget and --plan, e.g. --keep 0.72")
    if plan is not None:
        for name, value in (("--layers", layers), ("--method", method), ("--p", p), ("--sparse", sparse)):
            if value is not None:
                raise ValueError(f"{name} is what --plan says of each layer; edit {plan} instead")
    if budget is None and allocation is not None:
        raise ValueError("--allocation is how a --budget is shared out; expected that, too")
    replayed = None if plan is None else load_plan(plan)
    if replayed is not None and replayed.weighting is not None and calibrate is None:
        raise ValueError(
            f"{plan} was made under the weighting {replayed.weighting!r}, by a text; give that by --calibrate, "
            "or set its weighting to null"
        )
    if weighting is not None and calibrate is None:
        raise ValueError("--weighting is given without --calibrate, whose text it would weight by")
    if weighting is None:
        weighting = str(replayed.weighting) if replayed is not None and replayed.weighting else DEFAULT
    chosen = default_method(method or None, p, calibrated=calibrate is not None)
    method, p = str(chosen.solver), chosen.p
    _check_name("--method", method, SOLVERS)
    _check_name("--weighting", weighting, WEIGHTINGS)
    _check_name("--budget-of", budget_of, get_args(Costs))
    if allocation is not None:
        _check_name("--allocation", allocation, get_args(Allocation))
    _check_numbers(keep, rank, budget, p, num_iters, tol, method)
    if sparse is not None and not 0 <= sparse < 1:
        raise ValueError(f"--sparse is {sparse:g}; expected a share of each pair in [0, 1), e.g. 0.2")
    if sparse and (budget_of != "parameters" or break_even is not None):
        raise ValueError("--sparse saves no time; expected no --budget-of multiply_adds and no --break-even with it")
    if allocation == "error" and calibrate is not None and not WEIGHTINGS[weighting].compares_layers:
        raise ValueError(
            f"--allocation error does not compare layers under --weighting {weighting}; expected {DEFAULT}"
        )
    if allocation == "measured" and (calibrate is None or _is_statistics(calibrate)):
        raise ValueError("--allocation measured needs text to measure on: name some by --calibrate")
    if replayed is not None:
        allocation = replayed.allocation
    elif budget is not None and allocation is None:
        allocation = default_allocation(None if calibrate is None else weighting)
    named = layers or ",".join(LAYERS if budget is None else LAYERS_OF_BUDGET)
    return Wish(
        None if plan is not None else tuple(split_patterns(named)),
        keep,
        rank,
        budget,
        budget_of,
        allocation,
        replayed,
        method,
        p,
        sparse,
        calibrate,
        weighting,
        {name: value for name, value in (("num_iters", num_iters), ("tol", tol)) if value is not None},
    )


def check_paths(wish: Wish, checkpoint: Checkpoint, timings: BreakEven | None) -> None:
    """Refuse patterns that match nothing, budgets that no ranks fit, plans of another net, and a weighting that none of
    the layers has weights of."""
    from lpjax.allocation import require_budget
    from lpjax.compression import planned_paths
    from lpjax.select import is_table, leaves_with_paths, select_paths
    from lpjax.weighting.weightings import WEIGHTINGS

    if wish.plan is not None:
        paths = planned_paths(checkpoint.params, wish.plan.layers)
    else:
        paths = select_paths(checkpoint.params, list(wish.patterns or ()))
    if wish.source is not None and wish.weighting != "none":
        kinds = {is_table(path) for path in paths}
        if not any(WEIGHTINGS[wish.weighting].weights(table=table) for table in kinds):
            what = "embeddings" if kinds == {True} else "kernels"
            others = [name for name, one in WEIGHTINGS.items() if any(one.weights(table=table) for table in kinds)]
            raise ValueError(
                f"--weighting {wish.weighting} has no weights for {what}, and no other layers are selected; expected "
                f"{', '.join(others)}, or other --layers"
            )
    if wish.budget is not None:
        require_budget(checkpoint.params, wish.budget, wish.budget_of, list(wish.patterns or ()), timings)
    elif wish.plan is not None:
        _check_exponents(wish.plan)
    else:
        _check_ranks(wish, dict(leaves_with_paths(checkpoint.params)), paths)


def _check_statistics(calibration: Calibration, checkpoint: Checkpoint, wish: Wish, select: Any) -> None:
    """Refuse a file that lacks layers, or what the weighting is made of."""
    from lpjax.select import select_paths
    from lpjax.weighting.weightings import WEIGHTINGS

    paths = select_paths(checkpoint.params, select)
    if missing := [path for path in paths if path not in calibration.statistics]:
        raise ValueError(
            f"{wish.source} has no statistics of {missing[0]} ({len(missing)} of {len(paths)} layers); make it by "
            "lpjax calibrate with the --layers that are to be compressed"
        )
    gradients = WEIGHTINGS[wish.weighting].wants_gradients
    if gradients and any(calibration.statistics[path].outputs is None for path in paths):
        raise ValueError(
            f"{wish.source} has no gradients, which --weighting {wish.weighting} is made of; make it by lpjax "
            "calibrate without --forward-only, or name a --weighting such as drone or counts"
        )


def _check_exponents(plan: Plan) -> None:
    """Refuse what a solver would, once the texts were gone through."""
    for path, choice in plan.layers.items():
        if choice.rank is not None:
            try:
                _check_exponent("p", choice.p, choice.method)
            except ValueError as error:
                raise ValueError(f"--plan, layer {path}: {error}") from None


def _check_ranks(wish: Wish, leaves: dict[str, Any], paths: Iterable[str]) -> None:
    """Refuse a --keep or --rank by which nothing gets smaller."""
    from lpjax.select import rank_for

    matrices = [leaves[path] for path in paths]
    matrices = [leaf for leaf in matrices if leaf.ndim == 2 and min(leaf.shape)]
    ranks = [(rank_for(leaf.shape, wish.keep) if wish.keep is not None else wish.rank or 0) for leaf in matrices]
    # Of a pair, too, its size is what it stores.
    largest = [(leaf.size - 1) // sum(leaf.shape) for leaf in matrices]
    if matrices and not any(1 <= rank <= most for rank, most in zip(ranks, largest, strict=True)):
        if wish.keep is None:
            raise ValueError(f"--rank is {wish.rank}; no layer gets smaller by it, expected {max(largest)} or less")
        shares = [most * sum(leaf.shape) / math.prod(leaf.shape) for most, leaf in zip(largest, matrices, strict=True)]
        if max(largest) and min(ranks) >= 1:
            raise ValueError(
                f"--keep is {wish.keep:g}; no layer gets smaller by it, expected {max(shares):.3g} or less"
            )
        raise ValueError(f"--keep is {wish.keep:g}; no layer has a rank that fits; expected another share")


def decide(
    wish: Wish, checkpoint: Checkpoint, model: str, timings: BreakEven | None
) -> tuple[Calibration | None, dict[str, Any]]:
    """The calibration, and what `lpjax.compress` is to be told of layers, ranks and solvers."""
    import lpjax
    from lpjax.weighting import load_calibration
    from lpjax.weighting.weightings import WEIGHTINGS

    select = list(wish.patterns) if wish.patterns is not None else _layers_of(wish.plan)
    calibration = measure = None
    if wish.source is not None and _is_statistics(wish.source):
        with misuse():
            calibration = load_calibration(wish.source)
            check_weights(calibration, checkpoint, wish.source)
            _check_statistics(calibration, checkpoint, wish, select)
    elif wish.source is not None:
        name, lines = read_texts(wish.source)
        if wish.allocation == "measured":
            held, lines = _hold_out(lines)  # for a plan, too: its weights are those of the other texts
            measure = lpjax.Divergence(checkpoint, held) if wish.plan is None else None
        gradients = WEIGHTINGS[wish.weighting].wants_gradients
        with progress() as advance:
            calibration = calibrate_on(
                checkpoint, name, lines, None, None, MOST_TEXTS, advance, model=model, select=select,
                gradients=gradients,
            )  # fmt: skip
    if wish.plan is not None:
        return calibration, {"plan": wish.plan}
    if wish.budget is None:
        goal = {"keep": wish.keep, "rank": wish.rank, "sparse": wish.sparse, "solver": wish.method, "p": wish.p}
        return calibration, {"select": select, **goal}
    with progress() as advance:
        plan = lpjax.allocate(
            checkpoint.params,
            budget=wish.budget,
            budget_of=wish.budget_of,  # pyright: ignore[reportArgumentType]
            select=select,
            allocation=wish.allocation,  # pyright: ignore[reportArgumentType]
            calibration=calibration,
            weighting=None if calibration is None else wish.weighting,
            measure=measure,
            methods=((wish.method, wish.p),),
            sparse=wish.sparse,
            break_even=timings,
            progress=advance,
            **wish.options,
        )
    return calibration, {"plan": plan}


def plan_of(
    wish: Wish, calibration: Calibration | None, chosen: dict[str, Any], records: Iterable[LayerRecord], model: str
) -> Plan:
    """What was made of each layer, to be replayed."""
    from lpjax._defaults import share_of_entries
    from lpjax._provenance import run_record
    from lpjax.compression.plan import Choice, Plan

    told: dict[str, Any] = {"model": model, **run_record(None)}
    if calibration is not None:
        told["calibration"] = origin(calibration)
    weighting = None if calibration is None else wish.weighting
    if (plan := chosen.get("plan")) is not None:
        return dataclasses.replace(plan, weighting=weighting, provenance=told)
    layers: dict[str, Choice] = {}
    for record in records:
        rank, sparse = record.rank, 0.0
        if record.entries and not record.note:
            rank, sparse = _asked(wish, record), share_of_entries(wish.sparse, record.path, weighting, wish.method)
        layers[record.path] = Choice(rank, wish.method, wish.p, sparse)
    return Plan(layers, weighting, provenance=told)


def _asked(wish: Wish, record: LayerRecord) -> int | None:
    """The rank before single entries took their share."""
    from lpjax.select import rank_for

    n, d = record.shape
    return wish.rank if wish.keep is None else rank_for((n, d), wish.keep)


def origin(calibration: Calibration) -> dict[str, str]:
    """Where a calibration came from, for the record."""
    told = {key: calibration.provenance[key] for key in ("model", "source", "sha256") if key in calibration.provenance}
    return {key: str(value) for key, value in told.items()} | {
        key: str(getattr(calibration, key)) for key in ("texts", "tokens", "target", "seed")
    }


def _layers_of(plan: Plan | None) -> Any:
    layers = {} if plan is None else plan.layers
    return lambda path, _: path in layers


def _hold_out(lines: list[str]) -> tuple[list[str], list[str]]:
    """Evenly spaced texts to choose ranks by, at most a fifth of all, and the others; of fewer than five all, twice."""
    if len(lines) < 5:
        return lines, lines
    places = set(spaced(len(lines), min(_HELD_OUT, len(lines) // 5)))
    return [lines[i] for i in sorted(places)], [line for i, line in enumerate(lines) if i not in places]


def _is_statistics(source: Path) -> bool:
    return source.suffix == ".safetensors"


def _check_name(option: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{option} is {name!r}; expected one of {', '.join(known)}{hint}")


def _check_exponent(name: str, p: float, method: str) -> None:
    from lpjax.solvers import SOLVERS

    if p not in SOLVERS[method].p_range:
        raise ValueError(f"{name} is {p:g}; expected a number in {SOLVERS[method].p_range} for {method}")


def _check_numbers(
    keep: float | None,
    rank: int | None,
    budget: float | None,
    p: float,
    num_iters: int | None,
    tol: float | None,
    method: str,
) -> None:
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"--keep is {keep:g}; expected a share of the parameters in (0, 1], e.g. 0.72")
    if rank is not None:
        check_whole("--rank", rank, 1)
    if budget is not None and not 0 < budget < 1:
        raise ValueError(f"--budget is {budget:g}; expected a share of the whole net, above 0 and below 1, e.g. 0.5")
    _check_exponent("--p", p, method)
    if num_iters is not None:
        check_whole("--num-iters", num_iters, 0)
    if tol is not None and not 0 <= tol < math.inf:
        raise ValueError(f"--tol is {tol:g}; expected a number, 0 or more")
