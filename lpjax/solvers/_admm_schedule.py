"""The schedule of `admm_entries` for p ≤ 2: penalty, over-relaxation and damping of each step."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Scalar

from lpjax.solvers._core.start import select_tree


class Constants(NamedTuple):
    """The constants of a schedule at p = 1, with t = log2(length / 4).

    Attributes:
        begin, begin_slope: log ρ of the first step is begin + begin_slope·t.
        middle: log ρ half-way.
        end, end_slope: log ρ of the last step is end + end_slope·t.
        relaxation, relaxation_fall: α = 2 − relaxation·2^{−relaxation_fall·t}.
        damping, damping_fall: δ = 1 − damping·2^{−damping_fall·t}.
    """

    begin: float | Scalar
    begin_slope: float | Scalar
    middle: float | Scalar
    end: float | Scalar
    end_slope: float | Scalar
    relaxation: float | Scalar
    relaxation_fall: float | Scalar
    damping: float | Scalar
    damping_fall: float | Scalar


# Fitted by gradient descent through the iteration, to the objective after 4, 8, 16 and 32 steps on rows of a real
# embedding at p = 1, k/d = 0.52: `python -m benchmarks.admm_schedule`, which passes others to `solve_scheduled`.
FITTED = Constants(
    begin=-0.19,
    begin_slope=-0.29,
    middle=0.25,
    end=1.3,
    end_slope=0.66,
    relaxation=0.8,
    relaxation_fall=0.36,
    damping=0.38,
    damping_fall=0.6,
)


class Step(NamedTuple):
    """One step of a schedule: ρ in units of the schedule, over-relaxation α, damping δ."""

    rho: Scalar
    alpha: Scalar
    delta: Scalar


def scheduled_step(
    age: Int[Array, ""],
    length: Int[Array, ""],
    p: Scalar,
    share: float,
    sparse: Bool[Array, ""],
    constants: Constants = FITTED,
) -> Step:
    """Step `age`, from 0, of a schedule of `length`.

    log ρ is the parabola through its beginning, middle and end: the longer the schedule, the lower it begins and the
    higher it ends. The dependence on p and k/d was found by hand and checked on kernels and synthetic matrices. Near
    p = 2 the constants hardly matter, but with less than half of this ρ the iteration does not settle.

    Args:
        age: index of the step, from 0.
        length: number of steps.
        p: exponent.
        share: k/d; ρ grows with 1 − k/d, the fraction of dimensions that R leaves out.
        sparse: whether to run plain ADMM instead, with ρ growing to 30, as a damped U would lose the outliers.
        constants: constants of the schedule.
    """
    c, doublings = constants, jnp.log2(length.astype(p.dtype) / 4)
    begin = (c.begin + c.begin_slope * doublings) * (3 - p) / 2
    middle = c.middle - (p - 1)
    end = (c.end + c.end_slope * doublings) * (2 - p) ** 3
    at = age.astype(p.dtype) / jnp.maximum(length - 1, 1).astype(p.dtype)
    bend = 2 * (begin + end - 2 * middle)
    rho = jnp.exp(begin + (end - begin - bend) * at + bend * at**2) * (max(1 - share, 0.05) / 0.48) ** (0.7 * (2 - p))
    slowness = 2**-doublings
    alpha = 2 - c.relaxation * slowness**c.relaxation_fall
    delta = 1 - jnp.minimum(c.damping * slowness**c.damping_fall, 1) * (2 - p) ** 4
    unit = jnp.ones((), p.dtype)
    return select_tree(sparse, Step(30**at, unit, unit), Step(rho, alpha, delta))
