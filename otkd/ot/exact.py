"""Exact optimal transport by the network simplex (Bonneel et al., SIGGRAPH Asia 2011), as POT's `emd` has it.

Solved on the CPU in float64, problem by problem. The plan is a vertex of the transport polytope and locally constant,
so ⟨plan, cost⟩ has the plan as its gradient: exact wherever the optimal plan is unique, a subgradient elsewhere.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot.problem import read, transport_cost
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Exact optimal transport on the CPU."""

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
    arrays = zip(*(part.double().cpu().numpy() for part in problem), strict=True)
    solved = [_simplex(cost_NM, a_N, b_M, config.max_iters) for cost_NM, a_N, b_M in arrays]
    batch = cost_BNM.shape[:-2]

    def gather(key: int) -> Tensor:
        parts = torch.stack([torch.as_tensor(answer[key]) for answer in solved])
        return parts.reshape((*batch, *parts.shape[1:])).to(problem.cost_BNM.device)

    plan, f, g = (gather(key).to(problem.cost_BNM.dtype) for key in (0, 1, 2))
    error = problem.plan_error(plan.reshape(problem.cost_BNM.shape)).reshape(batch)
    return TransportResult(transport_cost(cost_BNM, plan), plan, (f, g), 0, error, gather(3))


def _simplex(cost_NM: Any, a_N: Any, b_M: Any, max_iters: int) -> tuple[Any, Any, Any, bool]:
    """Plan, potentials and whether POT found the optimum."""
    import numpy as np
    import ot as pot  # POT; importing it takes seconds

    if not np.isfinite(cost_NM).all():
        return cost_NM * np.nan, a_N * np.nan, b_M * np.nan, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what POT warns of is in the result
        plan_NM, log = pot.emd(a_N, b_M, cost_NM, numItermax=max_iters, log=True)
    return plan_NM, log["u"], log["v"], log["warning"] is None
