"""Exact optimal transport by the network simplex (Bonneel et al., SIGGRAPH Asia 2011), as POT's `emd` has it.

Solved on the CPU in float64; the problems of a batch share the threads that torch may use. The plan is a vertex of the
transport polytope and locally constant, so ⟨plan, cost⟩ has the plan as its gradient: exact wherever the optimal plan
is unique, a subgradient elsewhere.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot.problem import read, transport_cost
from otkd.ot.result import TransportResult
from otkd.ot.simplex import vertices


class Config(SolverConfig):
    """Exact optimal transport on the CPU."""

    waits = True

    name: str = "exact"
    """The plug-in's file name without `.py`."""
    max_iters: PositiveInt = 100_000
    """Pivots of the network simplex per problem before it gives up and says so."""


def solve(cost_BNM: Tensor, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """Solve min ⟨P, C⟩ over couplings P of a and b; see `TransportResult`.

    POT does not tell how many pivots it took, so `n_iters` is 0. A cost that is not finite gives NaN, not converged.

    Raises:
        OtkdError: see `otkd.ot.problem.read`.
    """
    problem = read(cost_BNM, a_BN, b_BM)
    found = vertices(problem, config.max_iters)
    batch = cost_BNM.shape[:-2]
    plan = found.plan_BNM.reshape(cost_BNM.shape)
    return TransportResult(
        value_B=transport_cost(cost_BNM, plan),
        plan_BNM=plan,
        potentials=(found.f_BN.reshape(*batch, -1), found.g_BM.reshape(*batch, -1)),
        n_iters=0,
        marginal_error_B=problem.plan_error(found.plan_BNM).reshape(batch),
        converged_B=found.optimal_B.reshape(batch),
    )
