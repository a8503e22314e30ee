"""Relaxed earth mover's distance: the larger of two bounds, each with one marginal dropped.

max(Σ_i a_i min_j C_ij, Σ_j b_j min_i C_ij), the minima over points that have weight (Kusner, Sun, Kolkin & Weinberger,
ICML 2015, for documents; Kolkin, Salavon & Shakhnarovich, CVPR 2019, for features). Each side is the
transport problem without the other side's constraint, so the value is a lower bound of `exact`. No iterations.

The plan is that of the larger side: every point of it goes whole to its nearest point of the other, in equal shares
where several are nearest. It has that side's marginal and not the other. The gradient is the plan: exact wherever the
nearest points and the larger side are unique, a subgradient of that side's cost elsewhere.

Disagreement: Kolkin et al. take the means of minima; that is the same for equal weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot.problem import Problem, read, transport_cost
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Each point to its nearest, from the side where that costs more."""

    balanced = False

    name: str = "relaxed"
    """The plug-in's file name without `.py`."""


def solve(cost_BNM: Tensor, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """The larger one-sided cost; see `TransportResult`.

    The potentials are the minima on the larger side and 0 on the other: feasible for the dual of `exact`, so they
    certify the bound. A cost that is not finite gives a value that is not finite, and is not converged.

    Raises:
        OtkdError: see `otkd.ot.problem.read`.
    """
    problem = read(cost_BNM, a_BN, b_BM)
    batch = cost_BNM.shape[:-2]
    f_BN = _nearest(problem.cost_BNM, problem.b_BM[:, None, :])
    g_BM = _nearest(problem.cost_BNM.mT, problem.a_BN[:, None, :])
    by_rows_B1 = ((problem.a_BN * f_BN).sum(-1) >= (problem.b_BM * g_BM).sum(-1))[:, None]
    plan_BNM = _rows(problem, f_BN, by_rows_B1).add_(_columns(problem, g_BM, ~by_rows_B1))
    plan = plan_BNM.reshape(cost_BNM.shape)
    value_B = transport_cost(cost_BNM, plan)
    return TransportResult(
        value_B=value_B,
        plan_BNM=plan,
        potentials=((f_BN * by_rows_B1).reshape(*batch, -1), (g_BM * ~by_rows_B1).reshape(*batch, -1)),
        n_iters=0,
        marginal_error_B=problem.plan_error(plan_BNM).reshape(batch),
        converged_B=value_B.detach().isfinite(),
    )


def _nearest(cost_BNM: Tensor, weight_B1M: Tensor) -> Tensor:
    """Each row's least cost among the columns that have weight."""
    return torch.where(weight_B1M > 0, cost_BNM, torch.inf).amin(-1)


def _rows(problem: Problem, f_BN: Tensor, chosen_B1: Tensor) -> Tensor:
    """Every row's weight on its nearest columns, in equal shares, in the chosen problems."""
    at_BNM = (problem.cost_BNM == f_BN[..., None]).logical_and_((problem.b_BM > 0)[:, None, :])
    return at_BNM * (chosen_B1 * problem.a_BN / at_BNM.sum(-1).clamp_min(1))[..., None]


def _columns(problem: Problem, g_BM: Tensor, chosen_B1: Tensor) -> Tensor:
    return _rows(Problem(problem.cost_BNM.mT, problem.b_BM, problem.a_BN), g_BM, chosen_B1).mT
