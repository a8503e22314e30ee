"""Partial optimal transport (Caffarelli & McCann, Annals of Mathematics 2010): a fraction of the mass, at least cost.

min ⟨P, C⟩ over P ≥ 0 with P1 ≤ a, Pᵀ1 ≤ b and total mass m. Points that match nothing are left where they are.

A dummy point on each side, free to reach and of mass 1 − m, takes what is left out, and makes it a balanced problem for
the network simplex (Chapel, Alaya & Gasso, NeurIPS 2020, Prop. 1). The two dummies would pay the largest cost for each
other, so they never do: with costs that begin at 0 any price above that is enough. It is solved as `exact` is: on the
CPU, in float64, to a vertex, with the plan as gradient, exact wherever the optimal plan is unique and a subgradient
elsewhere.

The value is the cost of the mass that moves, not divided by m; POT's `partial_wasserstein2` has the same.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot.problem import read, transport_cost
from otkd.ot.result import TransportResult
from otkd.ot.simplex import vertices


class Config(SolverConfig):
    """Exact transport of a fraction of the mass, on the CPU."""

    balanced = False
    waits = True

    name: str = "partial"
    """The plug-in's file name without `.py`."""
    mass: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of the mass that is moved; 1 moves all, as `exact` does."""
    max_iters: PositiveInt = 100_000
    """Pivots of the network simplex per problem before it gives up and says so."""


def solve(cost_BNM: Tensor, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """Solve min ⟨P, C⟩ over P that move the fraction `mass` of a into b; see `TransportResult`.

    `marginal_error_B` is what is not moved, 2 (1 − mass) where it has converged. `n_iters` is 0, as for `exact`. A cost
    that is not finite gives NaN, not converged.

    Raises:
        OtkdError: see `otkd.ot.problem.read`.
    """
    problem = read(cost_BNM, a_BN, b_BM)
    batch = cost_BNM.shape[:-2]
    found = vertices(problem, config.max_iters, left=1 - config.mass)
    plan = found.plan_BNM.reshape(cost_BNM.shape)
    return TransportResult(
        value_B=transport_cost(cost_BNM, plan),
        plan_BNM=plan,
        potentials=None,
        n_iters=0,
        marginal_error_B=problem.plan_error(found.plan_BNM).reshape(batch),
        converged_B=found.optimal_B.reshape(batch),
    )
