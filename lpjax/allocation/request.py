"""A request for compression: options, checked as early as possible, that become a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lpjax._check import check_share
from lpjax._tree import is_table
from lpjax.allocation._allocate import allocate, check_allocation, require_budget
from lpjax.allocation._bytes import plan_for_size
from lpjax.allocation._size import check_size, check_sized, parse_size
from lpjax.compression import (
    BreakEven,
    Plan,
    check_method,
    check_only_plan,
    check_smaller,
    check_uniform,
    check_units,
    measure_break_even,
    uniform_plan,
)
from lpjax.compression.defaults import (
    BUDGET,
    LAYERS,
    LAYERS_OF_BUDGET,
    SIZE,
    default_allocation,
    default_method,
    default_weighting,
)
from lpjax.select import exactly, select_paths
from lpjax.weighting import Calibration
from lpjax.weighting.weightings import DEFAULT, WEIGHTINGS, check_weighting, weighting_named


@dataclasses.dataclass(frozen=True)
class Request:
    """Options that decide how each layer is compressed.

    Attributes:
        select: patterns of layers; by default embeddings, and with a budget the encoder, too; None with a plan.
        keep, rank, budget, time, size, plan: exactly one of these; or a budget or time, and a size, for ranks by the
            budget and then rounding to the size. By default, with statistics, a tenth of the size or, with options of
            factorization, a budget of one half. `size` may be a text such as "9MB", see `parse_size`.
        time: share of the dense matrices' time; sets `budget`, and `budget_of` to "time".
        budget_of, allocation: unit of a `budget`, and how it is divided.
        solver, p, sparse_share: see `compress`; None for the defaults, or with a plan.
        weighting: weighting of errors by statistics; None for the plan's or the default.
        calibrated: whether there will be statistics.
        texts: whether statistics will be computed from texts.
        break_even: timings of layers.
        options: further keywords of the solver.

    Raises:
        ValueError: an argument out of range, or arguments that do not go together.
    """

    select: Sequence[str] | None = None
    keep: float | None = None
    rank: int | None = None
    budget: float | None = None
    time: float | None = None
    size: str | float | None = None
    plan: Plan | None = None
    budget_of: str = "parameters"
    allocation: str | None = None
    solver: str | None = None
    p: float | None = None
    sparse_share: float | None = None
    weighting: Any = None
    calibrated: bool = False
    texts: bool = False
    break_even: BreakEven | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.time is not None:
            if self.budget is not None or self.budget_of != "parameters":
                raise ValueError("`time` is itself a budget; pass either `time` or `budget` and `budget_of`, not both")
            check_share("time", self.time)
            self._set(budget=self.time, budget_of="time")
        goals = sum(value is not None for value in (self.keep, self.rank, self.budget, self.size, self.plan))
        if goals == 0 and self.calibrated:
            self._set(**({"budget": BUDGET} if self._factors else {"size": SIZE}))
        elif goals != 1 and not (goals == 2 and self.budget is not None and self.size is not None):
            raise ValueError(
                "expected exactly one of `size`, `keep`, `rank`, `budget`, `time` and `plan`, e.g. `keep` 0.72; "
                "or `size` and `budget` or `time`; or `statistics` alone, for 10% of the size"
            )
        if self.budget is None and self.allocation is not None:
            raise ValueError("`allocation` needs a `budget`")
        if self.plan is not None:
            check_only_plan(select=self.select, solver=self.solver, p=self.p, sparse_share=self.sparse_share)
            if self.calibrated:
                check_units(self.plan)
            check_method("svd", 2.0, **self.options)
        if self.size is not None:
            self._set(size=parse_size(self.size) if isinstance(self.size, str) else self.size)
            self._check_sized()
        weighting = self.weighting or (self.plan and self.plan.weighting)
        check_weighting(weighting, calibrated=self.calibrated)
        self._set(weighting=default_weighting(weighting, calibrated=self.calibrated))
        if self.plan is not None:
            self._set(plan=dataclasses.replace(self.plan, weighting=self.weighting))
            return
        if self.size is not None and self.budget is None:
            return
        self._set(select=list(self.select or (LAYERS if self.budget is None else LAYERS_OF_BUDGET)))
        if self.budget is None:
            check_uniform(**self._uniform, **self.options)
        else:
            check_allocation(**self._shared, **self.options)
        if self.measured and not self.texts:
            raise ValueError("`allocation` measured needs text to measure on; pass it as `statistics`")

    def _check_sized(self) -> None:
        """Refuse options of a factorization for a size without a budget."""
        check_size(self._bytes)
        if self.budget is not None:
            self._set(sparse_share=self.sparse_share or 0.0)
            return
        if name := next(iter(self._of_factors), None):
            raise ValueError(
                f"`size` without a `budget` only rounds, so `{name}` has no effect; omit `{name}` or add a `budget`"
            )

    @property
    def _of_factors(self) -> dict[str, Any]:
        """The given options that only a factorization has."""
        names = ("solver", "p", "sparse_share", "break_even")
        options = {name: getattr(self, name) for name in names} | self.options
        return {name: value for name, value in options.items() if value is not None}

    @property
    def _factors(self) -> bool:
        """Whether anything given needs a factorization."""
        others = self.budget_of != "parameters" or self.allocation is not None
        return bool(self._of_factors) or others or self.weighting not in (None, DEFAULT)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def _bytes(self) -> float:
        """The size as a number."""
        assert isinstance(self.size, float | int)
        return self.size

    @property
    def _rounded(self) -> Sequence[str] | None:
        """The `select` of layers that a size rounds; None for all with a budget, whose ranks `select` is for."""
        return None if self.budget is not None else self.select

    @property
    def measured(self) -> bool:
        """Whether ranks are chosen, or were for a plan, by running the model."""
        return "measured" in (self.allocation, self.plan and self.plan.allocation)

    @property
    def _goals(self) -> dict[str, float | None]:
        """The options that make layers smaller; all None for a plan."""
        return {"keep": self.keep, "rank": self.rank, "budget": self.budget}

    @property
    def _uniform(self) -> dict[str, Any]:
        """Arguments of `uniform_plan`, except for the layers."""
        names = ("keep", "rank", "solver", "p", "sparse_share", "weighting", "break_even")
        return {name: getattr(self, name) for name in names}

    @property
    def _shared(self) -> dict[str, Any]:
        """Arguments of `allocate`, except for the layers, the statistics and the measure."""
        names = ("budget", "budget_of", "sparse_share", "weighting", "break_even")
        return {name: getattr(self, name) for name in names} | {
            "allocation": self.allocation or default_allocation(self.weighting),
            "methods": [default_method(self.solver, self.p, calibrated=self.calibrated)],
        }

    def timed(self, params: Any, progress: Callable[[int, int, str], None] | None = None) -> Request:
        """The request, with timings of this machine if a budget of time has none; arguments are those of the measuring.

        Raises:
            ValueError: as `measure_break_even`.
        """
        if self.budget_of != "time" or self.break_even is not None:
            return self
        timings = measure_break_even(params, select=self.select or LAYERS_OF_BUDGET, progress=progress)
        return dataclasses.replace(self, time=None, break_even=timings)

    def limit(self, params: Any, other_bytes: int = 0) -> float | None:
        """The requested size in bytes, or None. Arguments and errors are those of `check_sized`."""
        return None if self.size is None else check_sized(params, self._bytes, self._rounded, other_bytes)[1]

    def plan_before_statistics(self, params: Any, other_bytes: int = 0) -> Plan | None:
        """The plan, checked against the model; None for a budget or size, which `share_out` divides later.

        Args:
            params: the model.
            other_bytes: bytes of the file besides `params`.

        Raises:
            ValueError: patterns match nothing, no layer would get smaller, the weighting has no weights for any layer,
                the budget is too small, or the plan belongs to another model.
        """
        self.limit(params, other_bytes)
        if self.size is not None and self.budget is None:
            return None
        if self.budget is not None:
            paths = select_paths(params, self.select or ())
            self._check_weights(paths)
            require_budget(params, self.budget, self.budget_of, exactly(paths), self.break_even)
            return None
        plan = self.plan or uniform_plan(params, select=self.select or (), **self._uniform)
        plan.check_layers(params)
        self._check_weights(plan.layers)
        check_smaller(plan, params, **self._goals)
        return plan

    def layers(self, params: Any) -> Callable[[str, Any], bool]:
        """A pattern for the layers that need statistics."""
        if self.size is not None:
            return exactly(select_paths(params, self.select or LAYERS_OF_BUDGET))
        if self.plan is None:
            return exactly(select_paths(params, self.select or ()))
        # Layers rounded to a fixed number of bits for a size had no statistics, and are rounded in the same way again.
        layers = self.plan.layers
        return exactly(
            [path for path, choice in layers.items() if choice.rank is not None or choice.bits is None] or layers
        )

    def share_out(
        self,
        params: Any,
        statistics: Calibration | None,
        measure: Any,
        progress: Callable[[int, int, str], None],
        other_bytes: int = 0,
    ) -> Plan:
        """The plan that divides the budget or size; arguments are those of `allocate` and `plan_for_size`.

        Raises:
            ValueError: no layer would get smaller; else as `allocate`.
        """
        plan = None
        if self.budget is not None:
            plan = allocate(
                params, select=self.layers(params), statistics=statistics, measure=measure, progress=progress,
                **self._shared, **self.options,
            )  # fmt: skip
            check_smaller(plan, params, **self._goals)
        if self.size is not None:
            plan = plan_for_size(
                params, self._bytes, statistics=statistics, weighting=self.weighting, select=self._rounded,
                ranks=plan, other_bytes=other_bytes, progress=progress,
            )  # fmt: skip
        assert plan is not None
        return plan

    def _check_weights(self, paths: Iterable[str]) -> None:
        if self.weighting in (None, "none"):
            return
        kinds = {is_table(path) for path in paths}
        if any(weighting_named(self.weighting).weights(table=table) for table in kinds):
            return
        what = "embeddings" if kinds == {True} else "kernels"
        others = [name for name, other in WEIGHTINGS.items() if any(other.weights(table=table) for table in kinds)]
        raise ValueError(
            f"`weighting` {self.weighting} has no weights for {what}, and no other layers are selected; expected "
            f"{', '.join(others)}, or other `select`"
        )
