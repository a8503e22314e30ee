"""The algorithm of `otkd.ot.entropic` where the host may not look: a given number of iterations, on any device.

Everything is decided by masks on the device. Nothing waits, and a CUDA graph can hold it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from otkd.ot.entropic_cpu import ANNEALING, CG, DEPTH, FAR, LIFTED, NEWTON_STEP, SETTLED
from otkd.ot.entropic_rules import Settings, Solution, budget, times
from otkd.ot.problem import Problem

ROUND = 5
"""Iterations between two absorptions."""


class _Kernel(NamedTuple):
    """K = exp((f₀ + g₀ − C)/ε) with row maxima 1."""

    matrix_BNM: Tensor
    f_BN: Tensor
    g_BM: Tensor
    epsilon_B1: Tensor


class _State(NamedTuple):
    """Scalings of the kernel: t, z = Kᵀ t, and s = K w with w = b / z. The plan t K w has columns b and rows t s."""

    t_BN: Tensor
    z_BM: Tensor
    s_BN: Tensor


def exactly(problem: Problem, settings: Settings, g_BM: Tensor, epsilon_B1: Tensor) -> Solution:
    """A number of iterations known beforehand, without a look from the host; the later half of them is at ε itself."""
    target, (n_iters, _blind) = settings.epsilon, budget(problem.cost_BNM.device, settings)
    rounds = [min(ROUND, n_iters - done) for done in range(0, n_iters, ROUND)]
    epsilon_B1 = _at_most(epsilon_B1, target, len(rounds) // 2)
    kernel, state = _round(problem, g_BM, torch.ones_like(g_BM), epsilon_B1, rounds[0])
    for index, steps in enumerate(rounds[1:], 1):
        epsilon_B1 = _cooler(problem, state, epsilon_B1, target, 2 * index >= len(rounds))
        g_BM, z_BM = _carried(kernel, state, epsilon_B1)
        del kernel  # for its memory
        kernel, state = _round(problem, g_BM, z_BM, epsilon_B1, steps)
    return _solution(problem, kernel, state, n_iters)


def _round(problem: Problem, g_BM: Tensor, z_BM: Tensor, epsilon_B1: Tensor, steps: int) -> tuple[_Kernel, _State]:
    """Absorb and do `steps` iterations, the third of them with a Newton step."""
    kernel, state = _absorb(problem, g_BM, z_BM, epsilon_B1)
    state = _advance(problem, kernel, state, min(steps, 2) - 1, False)
    return kernel, _advance(problem, kernel, state, steps - 2, True) if steps > 2 else state


def _at_most(epsilon_B1: Tensor, target: float, stages: int) -> Tensor:
    """Start ε-scaling no higher than can be come down from in so many stages."""
    return epsilon_B1.clamp(max=target * ANNEALING ** min(stages, 40))


def _cooler(problem: Problem, state: _State, epsilon_B1: Tensor, target: float, at_once: bool) -> Tensor:
    """The next ε of the problems that have settled at theirs."""
    if at_once:
        return torch.full_like(epsilon_B1, target)
    settled_B1 = _error(problem, state)[..., None] < SETTLED
    return torch.where(settled_B1, (epsilon_B1 / ANNEALING).clamp(min=target), epsilon_B1)


def _error(problem: Problem, state: _State) -> Tensor:
    return torch.sub(state.t_BN * state.s_BN, problem.a_BN).abs_().sum(-1)


def _carried(kernel: _Kernel, state: _State, epsilon_B1: Tensor) -> tuple[Tensor, Tensor]:
    """What the next kernel absorbs: the potential g, and the scaling z that is left, for each problem by itself."""
    far_B1 = state.z_BM.log().abs_().amax(-1, keepdim=True) > FAR
    moved_B1 = far_B1 | (epsilon_B1 != kernel.epsilon_B1)
    g_BM = torch.where(moved_B1, _column_potential(kernel, state), kernel.g_BM)
    return g_BM, state.z_BM.masked_fill(moved_B1, 1)


def _absorb(problem: Problem, g_BM: Tensor, z_BM: Tensor, epsilon_B1: Tensor) -> tuple[_Kernel, _State]:
    """The kernel at the potential g, and a first iteration on it from the scaling z."""
    minus_B1 = -1 / epsilon_B1
    exponent_BNM = torch.addcmul((g_BM * -minus_B1)[..., None, :], problem.cost_BNM, minus_B1[..., None])
    top_BN1 = exponent_BNM.amax(-1, keepdim=True)
    matrix_BNM = exponent_BNM.sub_(top_BN1).clamp_(min=-DEPTH).exp_()
    f_BN = top_BN1[..., 0] * -epsilon_B1
    kernel = _Kernel(matrix_BNM, f_BN, g_BM, epsilon_B1)
    state = _State(problem.a_BN, z_BM, times(kernel.matrix_BNM, problem.b_BM / z_BM))
    return kernel, _advance(problem, kernel, state, 1, False)


def _advance(problem: Problem, kernel: _Kernel, state: _State, steps: int, newton: bool) -> _State:
    """`steps` iterations, the first of them with a Newton step for the rows where that is the better one."""
    (t_BN, z_BM, s_BN), (_, a_BN, b_BM) = state, problem
    if newton:
        t_BN, z_BM, s_BN = _newton(problem, kernel, state)
    for _ in range(steps - newton):
        t_BN = a_BN / s_BN
        z_BM = times(kernel.matrix_BNM.mT, t_BN)
        s_BN = times(kernel.matrix_BNM, b_BM / z_BM)
    return _State(t_BN, z_BM, s_BN)


def _newton(problem: Problem, kernel: _Kernel, state: _State) -> _State:
    """The state after a Newton step; the old one where that is worse.

    No potential moves by more than `NEWTON_STEP` ε. Cutting off what goes farther is mostly better than a shorter step,
    but only the latter is sure to lead upwards, so both are tried.
    """
    t_BN, z_BM, s_BN = state
    r_BN = t_BN * s_BN
    safe_BN = r_BN.sqrt().clamp_(min=torch.finfo(r_BN.dtype).tiny)
    left_BN, squared_BM = (t_BN / s_BN).sqrt_(), problem.b_BM / z_BM.square()
    full_BN = _by_conjugate_gradients(kernel.matrix_BNM, left_BN, squared_BM, (problem.a_BN - r_BN) / safe_BN) / safe_BN
    shorter_BN = full_BN * (NEWTON_STEP / full_BN.abs().amax(-1, True)).clamp_(max=1)
    best, rise_B1 = state, torch.zeros_like(kernel.epsilon_B1)
    for step_BN in (full_BN.clamp_(-NEWTON_STEP, NEWTON_STEP), shorter_BN):
        new_t_BN = t_BN * step_BN.exp()
        new_z_BM = times(kernel.matrix_BNM.mT, new_t_BN)
        new_s_BN = times(kernel.matrix_BNM, problem.b_BM / new_z_BM)
        # both duals have exact columns, so they differ by a·Δf + b·Δg
        new_rise_B1 = (problem.a_BN * step_BN).sum(-1, True) + (problem.b_BM * (z_BM / new_z_BM).log_()).sum(-1, True)
        better_B1 = new_rise_B1 > rise_B1  # false where it is not a number
        pairs = zip((new_t_BN, new_z_BM, new_s_BN), best, strict=True)
        best = _State(*[torch.where(better_B1, new, old) for new, old in pairs])
        rise_B1 = torch.where(better_B1, new_rise_B1, rise_B1)
    return best


def _by_conjugate_gradients(matrix_BNM: Tensor, left_BN: Tensor, squared_BM: Tensor, y_BN: Tensor) -> Tensor:
    """(I − Q Qᵀ) x = y with Q = diag(left) K diag(√squared)."""
    tiny = torch.finfo(y_BN.dtype).tiny
    x_BN, rest_BN, way_BN = torch.zeros_like(y_BN), y_BN, y_BN
    size_B1 = y_BN.square().sum(-1, True)
    for _ in range(CG):
        inner_BM = times(matrix_BNM.mT, left_BN * way_BN).mul_(squared_BM)
        image_BN = way_BN - left_BN * times(matrix_BNM, inner_BM)
        stride_B1 = size_B1 / (way_BN * image_BN).sum(-1, True).clamp_(min=tiny)
        x_BN = x_BN + stride_B1 * way_BN
        rest_BN = rest_BN - stride_B1 * image_BN
        before_B1, size_B1 = size_B1, rest_BN.square().sum(-1, True)
        way_BN = rest_BN + (size_B1 / before_B1.clamp(min=tiny)) * way_BN
    return x_BN


def _column_potential(kernel: _Kernel, state: _State) -> Tensor:
    return torch.addcmul(kernel.g_BM, state.z_BM.log(), kernel.epsilon_B1, value=-1)


def _solution(problem: Problem, kernel: _Kernel, state: _State, n_iters: int) -> Solution:
    """Potentials, plan and values; the kernel's memory becomes the plan's.

    What was lifted is 0 in the plan, and missed by both marginals.
    """
    t_BN, z_BM, s_BN = state
    u_BN = torch.where(problem.a_BN > 0, t_BN / problem.a_BN, 1 / s_BN)
    f_BN = torch.addcmul(kernel.f_BN, u_BN.log_(), kernel.epsilon_B1)
    g_BM = _column_potential(kernel, state)
    kernel.matrix_BNM.masked_fill_(kernel.matrix_BNM <= LIFTED, 0)
    plan_BNM = kernel.matrix_BNM.mul_(t_BN[:, :, None]).mul_((problem.b_BM / z_BM)[:, None, :])
    kept_BN = plan_BNM.sum(-1)
    error_B = (kept_BN - problem.a_BN).abs().sum(-1) + (t_BN * s_BN - kept_BN).clamp_(min=0).sum(-1)
    dual_B = (problem.a_BN * f_BN).sum(-1) + (problem.b_BM * g_BM).sum(-1)
    return Solution(f_BN, g_BM, plan_BNM, error_B, dual_B, n_iters)
