"""Solutions in float64 that every code's value is compared with."""

from __future__ import annotations

from functools import cache

import ot as pot
import torch
from torch import Tensor

from benchmarks.transport.ours import configured
from benchmarks.transport.problems import Problem, Setting, each
from otkd.core import plugins

CERTIFIED = 1e-8
"""Marginal error that certifies an entropic solution."""


def reference(problem: Problem, setting: Setting, kind: str) -> Tensor | None:
    """The value (*lead) that `kind` stands for; None where it could not be found."""
    simple = {"exact": exact_reference, "sliced": sliced_reference, "gaussian": gaussian_reference}
    if kind in simple:
        return simple[kind](problem)
    assert setting.epsilon is not None
    if kind.endswith(" divergence"):
        return divergence_reference(problem, setting.epsilon, kind.split()[0])
    return entropic_reference(problem, setting.epsilon).get(kind)


@cache
def entropic_reference(problem: Problem, epsilon: float) -> dict[str, Tensor]:
    """Values of the plan a b exp((f + g − C)/ε) that has the asked marginals: whoever found f and g, it is optimal.

    Empty where none was found.
    """
    exact = problem.double()
    cost = exact.cost
    config = configured("sinkhorn", Setting(epsilon, 1e-10, 20_000))
    f_BN, g_BN = plugins.load("ot", "sinkhorn").solve(cost, exact.a_BN, exact.b_BN, config).potentials
    product = exact.a_BN[..., :, None] * exact.b_BN[..., None, :]
    plan = product * torch.exp((f_BN[..., :, None] + g_BN[..., None, :] - cost) / epsilon)
    if not exact.marginal_error(plan) < CERTIFIED:
        return {}
    linear = (plan * cost).sum((-2, -1))
    return {
        "linear": linear,
        "kl": linear + epsilon * torch.xlogy(plan, plan / product).sum((-2, -1)),
        "entropy": linear + epsilon * torch.xlogy(plan, plan).sum((-2, -1)),
    }


def divergence_reference(problem: Problem, epsilon: float, kind: str) -> Tensor | None:
    both, x, y = (
        entropic_reference(part, epsilon).get(kind)
        for part in (problem, with_itself(problem, "x"), with_itself(problem, "y"))
    )
    return None if both is None or x is None or y is None else both - (x + y) / 2


@cache
def with_itself(problem: Problem, side: str) -> Problem:
    x, a = (problem.x_BND.detach(), problem.a_BN) if side == "x" else (problem.y_BND, problem.b_BN)
    return Problem(problem.label, x, x, a, a, problem.weighted)


@cache
def exact_reference(problem: Problem) -> Tensor:
    exact = problem.double()
    return each(exact, lambda cost, a, b: pot.emd2(a, b, cost, numItermax=10_000_000), exact.cost, numpy=True)


@cache
def sliced_reference(problem: Problem, directions: int = 4096) -> Tensor:
    """By quantiles of the projections: 4096 directions stand for all, to a percent or so."""
    exact = problem.double()
    generator = torch.Generator().manual_seed(7)
    theta = torch.randn(exact.x_BND.shape[-1], directions, dtype=torch.float64, generator=generator)
    theta = (theta / theta.norm(dim=0)).to(exact.x_BND.device)

    def one(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        mean: Tensor = pot.wasserstein_1d(x @ theta, y @ theta, a, b, p=2).mean()
        return mean

    return each(exact, one, *exact.points)


@cache
def gaussian_reference(problem: Problem) -> Tensor:
    """|m_x − m_y|² + tr Σ_x + tr Σ_y − 2 ‖X Yᵀ‖₊, X and Y the centred points times the roots of their weights."""
    exact = problem.double()

    def one(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        mean_x, mean_y = a @ x, b @ y
        x, y = (x - mean_x) * a.sqrt()[:, None], (y - mean_y) * b.sqrt()[:, None]
        cross: Tensor = torch.linalg.svdvals(x @ y.T).sum()
        squares: Tensor = (mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum()
        return squares - 2 * cross

    return each(exact, one, *exact.points)
