"""The dual potentials of entropic transport: Sinkhorn's iterations on a stabilised kernel, sped up by Newton steps.

The plan is P = a b exp((f + g − C)/ε). Iterations scale the kernel K = exp((f₀ + g₀ − C)/ε) in which earlier potentials
are absorbed (Schmitzer, SIAM J. Sci. Comput. 2019, Alg. 2): with the weighted scalings t = a u and w = b v the two
updates are t ← a / (K w) and w ← b / (Kᵀ t). f₀ gives each row of K the maximum 1, and what lies under e^−`DEPTH` is
lifted to it, so that nothing overflows, vanishes or becomes subnormal; absorbing again puts right what was lifted. K
holds no weights: a point without one has t = 0, and still the potential that its row asks for.

An update is a step of block-coordinate ascent of the concave dual, which is a·f + b·g where the columns are exact. Now
and then a Newton step on the rows' marginal equations stands for the first half of an iteration (Brauer, Clason,
Lorenz & Wirth, 2017): (I − Q Qᵀ) x = (a − r)/√r with r the plan's row sums and Q = P / √(r bᵀ). It is kept, for each
problem of the batch by itself, only where the dual rises: the whole ascends, from wherever it starts. Where ε is small
against the costs' range, each problem comes from a larger ε in factors of `ANNEALING` (ε-scaling).

Two drivers take these steps. On the CPU `entropic_cpu.until` solves one problem after the other in compiled code, looks
at the error and stops. Everywhere else `entropic_device.exactly` runs a given number of iterations on all at once,
without any look from the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otkd.ot import entropic_cpu, entropic_device
from otkd.ot.entropic_cpu import GENTLE, STEEP
from otkd.ot.entropic_rules import Settings, Solution, budget
from otkd.ot.problem import Problem

NEAR = 0.3
"""Marginal error under which a given start needs no ε-scaling."""


def potentials(problem: Problem, settings: Settings, start: tuple[Tensor, Tensor] | None = None) -> Solution:
    """Solve each problem of the batch.

    Args:
        problem: costs and marginals. A problem with a cost that is not finite gives NaN and leaves the others alone.
        settings: with `iterations`, exactly that many; without, until `tolerance` on the CPU, and `DEVICE_BUDGET`
            iterations on other devices.
        start: potentials (…, N), (…, M) of a similar problem, used where they beat none.
    """
    _, blind = budget(problem.cost_BNM.device, settings)
    g_BM, annealed_B1 = _begin(problem, settings, start)
    if not blind:
        return entropic_cpu.until(problem, settings, g_BM, annealed_B1[:, 0])
    lowest_B1, highest_B1 = torch.aminmax(problem.cost_BNM.flatten(-2), dim=-1, keepdim=True)
    spread_B1 = highest_B1 - lowest_B1
    told_apart_B1 = spread_B1 * torch.finfo(spread_B1.dtype).eps < settings.epsilon  # else ε is lost in potentials
    steep_B1 = annealed_B1 & (spread_B1 > STEEP * settings.epsilon) & told_apart_B1
    epsilon_B1 = torch.where(steep_B1, spread_B1 / GENTLE, settings.epsilon)
    solution = entropic_device.exactly(problem, settings, g_BM, epsilon_B1)
    poison_B = 0 * spread_B1[:, 0]  # NaN where a cost is not finite
    return solution._replace(error_B=solution.error_B + poison_B, dual_B=solution.dual_B + poison_B)


def log_weights(weights: Tensor) -> Tensor:
    """Logarithms, −∞ for 0 without a gradient there."""
    return torch.where(weights > 0, weights, 1).log().masked_fill(weights <= 0, -math.inf)


def soft_min(g_BM: Tensor, log_b_BM: Tensor, cost_BNM: Tensor, epsilon: float) -> Tensor:
    """f = −ε log Σ b exp((g − C)/ε), the potential that makes the rows exact."""
    return -epsilon * torch.logsumexp((g_BM / epsilon + log_b_BM)[..., None, :] - cost_BNM / epsilon, -1)


@torch.no_grad()
def first_potential(problem: Problem, epsilon: float, start: tuple[Tensor, Tensor] | None) -> Tensor:
    """The g of `start` where it beats 0, else 0."""
    g_BM = torch.zeros_like(problem.b_BM)
    return g_BM if start is None else _warm(problem, g_BM, start, epsilon)[0]


def _warm(problem: Problem, g_BM: Tensor, start: tuple[Tensor, Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """The start's g where it has a higher dual value than `g_BM`, and whether it nearly solves the problem."""
    warm_g_BM = start[1].detach().to(g_BM).reshape(g_BM.shape)
    lowest_B1, highest_B1 = torch.aminmax(warm_g_BM, dim=-1, keepdim=True)
    flat_BM = problem.cost_BNM.flatten(-2)
    tame_B1 = highest_B1 - lowest_B1 <= 2 * (flat_BM.amax(-1, True) - flat_BM.amin(-1, True))  # as an optimal g is
    warm_g_BM = torch.where(tame_B1, warm_g_BM - lowest_B1, 0)
    (f_BN, one_g_BM), (warm_f_BN, one_warm_g_BM) = (_log_iteration(problem, g, epsilon) for g in (g_BM, warm_g_BM))
    gain_BN, gain_BM = problem.a_BN * (warm_f_BN - f_BN), problem.b_BM * (one_warm_g_BM - one_g_BM)
    better_B1 = gain_BN.sum(-1, True) + gain_BM.sum(-1, True) > 0  # false where the start is not finite
    error_B1 = (problem.b_BM * torch.expm1((warm_g_BM - one_warm_g_BM) / epsilon)).abs().sum(-1, True)
    return torch.where(better_B1, warm_g_BM, g_BM), better_B1 & (error_B1 < NEAR)


def _log_iteration(problem: Problem, g_BM: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """One iteration by log-sum-exp: safe for any finite g and any ε."""
    f_BN = soft_min(g_BM, problem.b_BM.log(), problem.cost_BNM, epsilon)
    return f_BN, soft_min(f_BN, problem.a_BN.log(), problem.cost_BNM.mT, epsilon)


def _begin(problem: Problem, settings: Settings, start: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """The first g, and which problems (B, 1) may come from a larger ε."""
    g_BM = torch.zeros_like(problem.b_BM)
    annealed_B1 = torch.full_like(g_BM[:, :1], settings.annealing, dtype=torch.bool)
    if start is not None:
        g_BM, near_B1 = _warm(problem, g_BM, start, settings.epsilon)
        annealed_B1 &= ~near_B1
    if start is not None or not settings.annealing:
        g_BM = _log_iteration(problem, g_BM, settings.epsilon)[1]
    return g_BM, annealed_B1
