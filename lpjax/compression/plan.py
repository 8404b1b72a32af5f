"""`Plan`: the rank and method of each matrix of a model; its file has one line per layer, for editing and reuse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import msgspec
import numpy as np

from lpjax._check import check_name, check_share, check_whole
from lpjax._files.json import (
    Exponent,
    Positive,
    RecordError,
    Text,
    as_type,
    exponent_text,
    json_line,
    json_text,
    read_object,
)
from lpjax._files.replacing import write_text
from lpjax._repr import short_repr
from lpjax._tree import leaves_with_paths
from lpjax.checkpoint.targets import refuse_existing
from lpjax.compression.defaults import default_method, default_sparse_share
from lpjax.compression.latency import BreakEven
from lpjax.rounding.kernels import check_step
from lpjax.select import InputAxes, MatrixView, Select, axes_of_leaves, matrix_views, rank_for, select_paths
from lpjax.solvers import SOLVERS, Solution
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import (
    DEFAULT,
    WEIGHTINGS,
    Weighting,
    check_weighting,
    leaf_metrics,
    require_comparable,
    weighting_named,
)
from lpjax.weights.low_rank import LowRank

SCHEMA = "lpjax-plan/1"

ROUNDED_BITS = (2, 3, 4, 5, 6, 8)
"""Allowed `bits` of a `Choice`."""

Costs = Literal["parameters", "multiply_adds", "time"]
Rest = Literal["float16", "bfloat16"]
SolverLike = str | Callable[..., Solution]
"""A name in `SOLVERS`, or a function like one of its solvers."""


class Choice(NamedTuple):
    """The rank and the method of one matrix.

    Attributes:
        rank: rank of the pair; None to keep the matrix dense.
        method: name in `SOLVERS`, or a solver function.
        p: exponent; "svd" minimises for p = 2 regardless.
        sparse_share: share of the parameters of a pair of that rank that is spent on single entries instead; the pair
            itself then has a lower rank.
        step: rounding step of the matrix or of both factors (`lpjax.rounding`), in units of the weighted error; without
            statistics, in units of the root mean square of the matrix. A table without a rank is rounded in a rotated
            basis; its rank is then the number of remaining directions. None to keep floating-point numbers.
        bits: number of bits of each code, instead of a step, one of 2, 3, 4, 5, 6, 8.
        group: number of codes that share a scale, with `bits`; None for one scale per row of a table or output of a
            kernel.
    """

    rank: int | None
    method: SolverLike = "svd"
    p: float = 2.0
    sparse_share: float = 0.0
    step: float | None = None
    bits: int | None = None
    group: int | None = None

    @property
    def rounds(self) -> bool:
        """Whether it rounds the matrix or its factors."""
        return self.step is not None or self.bits is not None

    def check(self) -> None:
        """Refuse a choice that is invalid for any matrix.

        Raises:
            ValueError: a field is out of range, or `step`, `bits` and `group` do not go together.
        """
        if self.rank is not None:
            check_whole("`rank`", int(self.rank) if isinstance(self.rank, np.integer) else self.rank, 1)
            check_method(self.method, self.p, name="method")
        check_share("sparse_share", self.sparse_share)
        if self.step is not None:
            check_step(self.step)
            if self.bits is not None:
                raise ValueError(f"`step` is {self.step} and `bits` is {self.bits}; pass either, not both")
        if self.bits is not None and self.bits not in ROUNDED_BITS:
            raise ValueError(f"`bits` is {self.bits}; expected one of {', '.join(map(str, ROUNDED_BITS))}")
        if self.group is not None:
            if self.bits is None:
                raise ValueError(f"`group` is {self.group}, but `group` needs `bits`")
            check_whole("`group`", self.group, 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice for each matrix, and the goal of these choices.

    Attributes:
        layers: path -> `Choice`.
        weighting: weighting of errors, a `Weighting` or its name; None for unweighted errors.
        budget: share of `budget_of` that the whole model may keep; None if the choices were not made by a budget.
        budget_of: "parameters", "multiply_adds" or "time".
        allocation: method of `allocate` that chose the ranks; None without a budget.
        provenance: model, texts and versions, as JSON values.
        keep: share that each matrix may keep; None if ranks were chosen otherwise. Not written to the plan's file.
        rest: dtype of all other floating-point arrays of the model, such as biases and norms; None to leave them.
    """

    layers: Mapping[str, Choice]
    weighting: str | Weighting | None = None
    budget: float | None = None
    budget_of: Costs | None = None
    allocation: str | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep: float | None = None
    rest: Rest | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    def check(self, params: Any, statistics: Calibration | None = None, input_axes: InputAxes | None = None) -> None:
        """Check the plan against a model and statistics, before any work.

        Args:
            params: the model.
            statistics: statistics that weight errors; see `compress`.
            input_axes: see `compress`.

        Raises:
            ValueError: as `check_layers`; a weighting without statistics, or statistics that lack a layer or a needed
                statistic, are not finite, or are those of another model.
        """
        self.check_layers(params, input_axes)
        check_weighting(self.weighting, calibrated=statistics is not None)
        if statistics is not None:
            check_units(self)
            leaves = dict(leaves_with_paths(params))
            leaf_metrics(
                statistics, self.weighting or DEFAULT, {path: leaves[path] for path in self.weighted(statistics)}
            )
            if any(choice.rounds for choice in self.layers.values()):
                require_comparable(self.weighting, "rounding")

    def weighted(self, statistics: Calibration) -> list[str]:
        """Paths of the layers weighted by statistics: all but those rounded to given bits that `statistics` lack."""
        return [
            path
            for path, choice in self.layers.items()
            if path in statistics.statistics or choice.rank is not None or choice.bits is None
        ]

    def check_layers(self, params: Any, input_axes: InputAxes | None = None) -> None:
        """The part of `check` that needs no statistics.

        Raises:
            ValueError: no layer, unknown paths, leaves that are not matrices, an invalid choice, single entries for a
                stack of matrices, or an unknown weighting.
        """
        leaves = dict(leaves_with_paths(params))
        axes_of_leaves(leaves, input_axes)
        if not self.layers:
            raise ValueError("`plan` names no layer")
        if strangers := [path for path in self.layers if path not in leaves]:
            raise ValueError(
                f"`plan` names {', '.join(strangers[:5])}, which the model does not have; it belongs to another model"
            )
        for path, choice in self.layers.items():
            try:
                choice.check()
            except ValueError as error:  # names of arguments are those of the layer here
                raise ValueError(f"`plan`, layer {path}: {str(error).replace('`', '')}") from None
        select_paths(params, lambda path, _: path in self.layers, input_axes)
        for path, choice in self.layers.items():
            only = "`sparse_share` is" if choice.sparse_share and choice.rank is not None else ""
            only = "`step` and `bits` are" if choice.rounds else only
            if only and len(leaves[path].shape) != 2:
                raise ValueError(
                    f"{only} for matrices, but {path} has shape {tuple(leaves[path].shape)}; leave it out of `select`"
                )
        if self.weighting is not None:
            weighting_named(self.weighting)

    def unchanged(self, params: Any, input_axes: InputAxes | None = None) -> dict[str, str]:
        """path -> reason, for each leaf that stays unchanged."""
        views = matrix_views(params, self.layers, input_axes)
        reasons = {path: self._reason(choice, *views[path]) for path, choice in self.layers.items()}
        return {path: reason for path, reason in reasons.items() if reason and not self.layers[path].rounds}

    def factored(self, params: Any, input_axes: InputAxes | None = None) -> list[str]:
        """Paths of the leaves that become pairs before any rounding."""
        views = matrix_views(params, self.layers, input_axes)
        return [path for path, choice in self.layers.items() if not self._reason(choice, *views[path])]

    def _reason(self, choice: Choice, leaf: Any, view: MatrixView) -> str:
        n, d = view.inputs, view.outputs
        if choice.rank is None:
            return "the plan leaves it unchanged" if self.keep is None else "even rank 1 exceeds `keep`"
        most = (leaf.size - 1) // (math.prod(view.stack) * (n + d)) if leaf.size else 0
        if choice.rank <= most:
            return ""
        expected = f"rank {most}" if self.keep is None else f"{most * (n + d) / (n * d):.3g}"
        hint = f"expected {expected} or less" if most else "no pair is smaller"
        if isinstance(leaf, LowRank):
            share = leaf.size / math.prod(leaf.shape)
            pair = f"the present one of rank {leaf.rank}, which keeps {share:.2g} of the dense matrix"
            return f"a pair of rank {choice.rank} is no smaller than {pair}; {hint}"
        return f"a pair of rank {choice.rank} has {choice.rank * (n + d)} parameters, no fewer; {hint}"


def check_units(plan: Plan) -> None:
    """Refuse statistics for a plan that was made without any.

    Raises:
        ValueError: the plan rounds by steps in units of each matrix's root mean square; with statistics they would be
            read in units of the model's outputs.
    """
    if plan.weighting is None and any(choice.step is not None for choice in plan.layers.values()):
        raise ValueError(
            "`plan` has no `weighting`: its steps were chosen without `statistics` and are in other units; compress "
            "without `statistics`, or make a plan for the size with them"
        )


def check_smaller(plan: Plan, params: Any, **goals: float | None) -> None:
    """Refuse a plan that makes no layer smaller.

    Args:
        plan: plan for `params`.
        params: the model.
        **goals: arguments that the plan was made from; the message names the first that is not None, else `plan`.

    Raises:
        ValueError: no layer gets smaller; gives the reasons.
    """
    reasons = plan.unchanged(params)  # without rounded layers
    if len(reasons) == len(plan.layers):
        goal = next((f"`{name}` is {value:g}" for name, value in goals.items() if value is not None), "`plan`")
        notes = "; ".join([*dict.fromkeys(reasons.values())][:3])
        raise ValueError(f"{goal}: no layer gets smaller: {notes}")


def uniform_plan(
    params: Any,
    *,
    select: Select | None,
    keep: float | None = None,
    rank: int | None = None,
    solver: SolverLike | None = None,
    p: float | None = None,
    sparse_share: float | None = None,
    weighting: str | Weighting | None = None,
    break_even: BreakEven | None = None,
    input_axes: InputAxes | None = None,
) -> Plan:
    """The same goal and method for all selected matrices. `compress` documents the arguments.

    Args:
        params: nested containers of arrays.
        select, keep, rank, solver, p, sparse_share, input_axes: see `compress`.
        weighting: weighting of errors by the statistics for `compress`; None for unweighted errors.
        break_even: timings; with them `sparse_share` is 0 by default, as the time of single entries is unknown.

    Raises:
        ValueError: an argument out of range, `select` matches nothing or no matrix, or `input_axes` do not fit.
    """
    check_uniform(
        keep=keep,
        rank=rank,
        solver=solver,
        p=p,
        sparse_share=sparse_share,
        weighting=weighting,
        break_even=break_even,
    )
    if select is None:
        raise ValueError("`select` is missing; expected a group, a pattern or a function, or a `plan` instead")
    method = default_method(solver, p, calibrated=weighting is not None)
    layers = {}
    for path, (_, view) in matrix_views(params, select_paths(params, select, input_axes), input_axes).items():
        fitting = rank if keep is None else rank_for((view.inputs, view.outputs), keep) or None
        by_time = break_even is not None
        share = default_sparse_share(sparse_share, path, weighting, method.solver, by_time=by_time)
        layers[path] = Choice(fitting, *method, share)
    return Plan(layers, weighting, keep=keep)


def check_uniform(
    *,
    keep: float | None,
    rank: int | None,
    solver: SolverLike | None = None,
    p: float | None = None,
    sparse_share: float | None = None,
    weighting: str | Weighting | None = None,
    break_even: Any = None,
    **options: Any,
) -> None:
    """Refuse arguments of `uniform_plan` that are invalid for any model.

    Args:
        keep, rank, solver, p, sparse_share, weighting, break_even: see `uniform_plan`.
        **options: options of the solver.

    Raises:
        ValueError: naming the first.
    """
    if (keep is None) == (rank is None):
        raise ValueError(f"`keep` is {keep} and `rank` is {rank}; expected exactly one of them")
    if keep is not None:
        check_share("keep", keep)
    if rank is not None:
        check_whole("`rank`", int(rank) if isinstance(rank, np.integer) else rank, 1)
    check_sparse_share(sparse_share, break_even=break_even)
    if weighting is not None:
        weighting_named(weighting)
    check_method(*default_method(solver, p, calibrated=weighting is not None), **options)


def check_sparse_share(share: float | None, *, budget_of: str = "parameters", break_even: Any = None) -> None:
    """Refuse a share of single entries out of range, or together with a goal in time, which they do not serve.

    Raises:
        ValueError: either.
    """
    if share is None:
        return
    check_share("sparse_share", share)
    if share and (budget_of != "parameters" or break_even is not None):
        raise ValueError(
            "`sparse_share` saves parameters, not time; use it with `budget_of` parameters and without `break_even`"
        )


def check_only_plan(**arguments: Any) -> None:
    """Refuse arguments that a plan already determines.

    Raises:
        ValueError: naming the first that is not None.
    """
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`plan` and `{name}` both choose for each layer; pass either, not both")


def check_method(solver: SolverLike, p: float, *, name: str = "solver", **options: Any) -> None:
    """Refuse an unknown solver, and an exponent or options that it refuses; functions are not checked.

    Raises:
        ValueError: naming it.
    """
    if callable(solver):
        return
    check_name(name, solver, SOLVERS)
    smallest = jax.ShapeDtypeStruct((2, 2), np.float32)
    jax.eval_shape(lambda matrix: SOLVERS[solver](matrix, 1, p=p, **options), smallest)
    SOLVERS[solver].p_range.check(p)


def save_plan(plan: Plan, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a plan as JSON, whole or not at all.

    Raises:
        FileExistsError: the file exists, and `overwrite` is not given.
        ValueError: `provenance` has values that JSON cannot represent, or the weighting or a method has no name.
        OSError: it cannot be written.
    """
    path = Path(path)
    refuse_existing(path, "plan", overwrite=overwrite)
    document: dict[str, Any] = {"schema": SCHEMA}
    document |= {key: getattr(plan, key) for key in ("budget", "budget_of", "allocation")}
    document |= {"weighting": _name(plan.weighting), "provenance": dict(plan.provenance)}
    document |= {} if plan.rest is None else {"rest": plan.rest}
    try:
        head = json_text(document, ascii=False).removesuffix("\n}\n")
        layers = [json_line({"path": path, **_plain(choice)}, ascii=False) for path, choice in plan.layers.items()]
    except TypeError as error:
        raise ValueError(f"`plan` holds values that JSON cannot represent: {error}") from error
    lines = ",\n".join(f"    {layer}" for layer in layers)
    write_text(path, f'{head},\n  "layers": [\n{lines}\n  ]\n}}\n')


def _plain(choice: Choice) -> dict[str, Any]:
    """A choice as JSON values."""
    rank = None if choice.rank is None else int(choice.rank)
    plain = {"rank": rank, "method": choice.method, "p": exponent_text(float(choice.p))}
    plain |= {"sparse": float(choice.sparse_share)} if choice.sparse_share else {}
    rounding = {"step": choice.step, "bits": choice.bits, "group": choice.group}
    return plain | {name: value for name, value in rounding.items() if value is not None}


def _name(weighting: str | Weighting | None) -> str | None:
    if not isinstance(weighting, Weighting):
        return weighting
    for name, known in WEIGHTINGS.items():
        if known == weighting:
            return name
    raise ValueError(f"`plan.weighting` is {weighting}, which has no name; expected one of {', '.join(WEIGHTINGS)}")


class _StoredLayer(msgspec.Struct):
    path: Text
    rank: Positive | None
    method: Text | None = None
    p: Exponent | None = None
    sparse: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    step: Annotated[float, msgspec.Meta(gt=0)] | None = None
    bits: Literal[2, 3, 4, 5, 6, 8] | None = None
    group: Positive | None = None


class _StoredPlan(msgspec.Struct):
    layers: Annotated[tuple[_StoredLayer, ...], msgspec.Meta(min_length=1)]
    weighting: Text | None = None
    budget: float | None = None
    budget_of: Costs | None = None
    allocation: Text | None = None
    provenance: dict[str, Any] = {}
    rest: Rest | None = None


def load_plan(path: str | Path) -> Plan:
    """The plan in a file.

    Raises:
        RecordError: the file does not hold a plan; names the file and the key.
    """
    stored = as_type(read_object(Path(path), schema=SCHEMA), _StoredPlan, str(path))
    layers: dict[str, Choice] = {}
    for i, layer in enumerate(stored.layers):
        if layer.path in layers:
            raise RecordError(f"{path}: {layer.path} appears twice; keep one")
        layers[layer.path] = _choice(layer, f"{path}: layers[{i}]")
    if stored.budget_of not in (None, "parameters") and any(choice.sparse_share for choice in layers.values()):
        raise RecordError(
            f'{path}: budget_of is "{stored.budget_of}"; expected "parameters" or null, because single entries '
            "(sparse) save no multiply-adds"
        )
    head = (stored.weighting, stored.budget, stored.budget_of, stored.allocation, stored.provenance)
    return Plan(layers, *head, rest=stored.rest)


def _choice(layer: _StoredLayer, place: str) -> Choice:
    rounding = {"step": layer.step, "bits": layer.bits, "group": layer.group}
    if layer.rank is None:
        choice = Choice(None, **rounding)
    elif layer.method is None or layer.p is None:
        raise RecordError(f"{place}.{'method' if layer.method is None else 'p'} is missing")
    else:
        choice = Choice(layer.rank, layer.method, float(layer.p), layer.sparse, **rounding)
    try:
        if layer.rank is not None:
            check_name("method", layer.method, SOLVERS)
        if choice.rounds or choice.group is not None:
            choice.check()
    except ValueError as error:
        raise RecordError(f"{place}: {error}") from None
    return choice
