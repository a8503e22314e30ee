"""Exact optimal transport by proximal point steps, IPOT (Xie, Wang, Wang & Zha, UAI 2020, Alg. 1), batched.

Step t solves min ⟨P, C⟩ + β KL(P | P_t) over couplings, inexactly, by `inner` Sinkhorn iterations whose second scaling
is carried over. Every β > 0 leads to an optimum of the unregularised problem: exact steps pass through Sinkhorn's plans
at ε = β/t. P is kept as the logarithm of its density against a⊗b, where it starts at 0, so that single precision and
small β do no harm; the paper scales kernels and starts from equal masses.

The end is certified. The plan is rounded to the asked marginals (Altschuler, Weed & Rigollet, NIPS 2017, Alg. 2), so
its cost is an upper bound; the summed and the latest scalings both give feasible potentials, the better of which is a
lower bound. It stops when the two are `tolerance` apart. The plan is spread over all optimal plans where there are
several, and has small positive entries elsewhere: it is no vertex. The value is ⟨P, C⟩ and its gradient the plan, a
subgradient of the exact cost up to the gap.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot import logspace
from otkd.ot.precision import full_precision
from otkd.ot.problem import Problem, budget, read, transport_cost
from otkd.ot.result import TransportResult

DEVICE_BUDGET = 128
"""Steps in place of a tolerance where looking at the gap would make the host wait for the device. Between features of
many dimensions 90 reach the default one; in the plane, 256 points take twice as many."""


class Config(SolverConfig):
    """Exact optimal transport on any device, to a tolerance."""

    name: str = "proximal"
    """The plug-in's file name without `.py`."""
    beta: PositiveFloat = 0.3
    """Weight of the proximal term, in units of the cost: small values take long steps that need more `inner` ones."""
    inner: PositiveInt = 1
    """Sinkhorn iterations in each proximal step."""
    max_iters: PositiveInt = 2000
    """Proximal steps before it gives up and says so. On a GPU no more than 128 are run, and always: looking at the gap
    would keep the host waiting."""
    tolerance: PositiveFloat = 1e-3
    """Duality gap at which it stops, in units of the cost: the value is above the optimum by no more."""
    check_every: PositiveInt = 10
    """Proximal steps between two looks at the gap."""
    iterations: PositiveInt | None = None
    """Run exactly so many steps in place of looking at the gap; the host never waits for the device."""


class _State(NamedTuple):
    """Density of the plan and the logarithms of scalings, of the last step and of all steps together."""

    log_density_BNM: Tensor
    u_BN: Tensor
    v_BM: Tensor
    sum_u_BN: Tensor
    sum_v_BM: Tensor


class _Bounds(NamedTuple):
    plan_BNM: Tensor
    f_BN: Tensor
    g_BM: Tensor
    gap_B: Tensor


def solve(cost_BNM: Tensor, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """Solve min ⟨P, C⟩ over couplings P of a and b; see `TransportResult`.

    The potentials are feasible, f + g ≤ C, and certify the value to the gap. A cost that is not finite gives a value
    that is not finite, and is not converged.

    Raises:
        OtkdError: see `otkd.ot.problem.read`.
    """
    with full_precision(cost_BNM):
        problem = read(cost_BNM, a_BN, b_BM)
        with torch.no_grad():
            bounds, n_iters = _iterate(problem, config)
        batch = cost_BNM.shape[:-2]
        plan = bounds.plan_BNM.reshape(cost_BNM.shape)
        value_B = transport_cost(cost_BNM, plan)
    return TransportResult(
        value_B=value_B,
        plan_BNM=plan,
        potentials=(bounds.f_BN.reshape(*batch, -1), bounds.g_BM.reshape(*batch, -1)),
        n_iters=n_iters,
        marginal_error_B=problem.plan_error(bounds.plan_BNM).reshape(batch),
        converged_B=(bounds.gap_B <= config.tolerance).reshape(batch),
    )


def _iterate(problem: Problem, config: Config) -> tuple[_Bounds, int]:
    zero_BN, zero_BM = torch.zeros_like(problem.a_BN), torch.zeros_like(problem.b_BM)
    state, n_iters = _State(torch.zeros_like(problem.cost_BNM), zero_BN, zero_BM, zero_BN, zero_BM), 0
    most, blind = budget(problem.cost_BNM.device, config, DEVICE_BUDGET)
    while True:
        steps = most if blind else min(config.check_every, most - n_iters)
        state, n_iters = _steps(problem, state, config, steps), n_iters + steps
        bounds = _bounds(problem, state, config.beta / n_iters, config.beta)
        if n_iters >= most or not _unfinished(bounds, config.tolerance):
            return bounds, n_iters
        del bounds  # for its memory


def _unfinished(bounds: _Bounds, tolerance: float) -> bool:
    return bool(((bounds.gap_B > tolerance) & bounds.gap_B.isfinite()).any())


def _steps(problem: Problem, state: _State, config: Config, steps: int) -> _State:
    """`steps` proximal steps: D ← D − C/β + u + v, with u and v the logarithms of the scalings that fit its marginals.

    A point of no weight has a density like any other, and no mass. The state's density is changed in place.
    """
    log_density_BNM, u_BN, v_BM, sum_u_BN, sum_v_BM = state
    log_a_BN1, log_b_B1M = problem.a_BN.log()[:, :, None], problem.b_BM.log()[:, None, :]
    for _ in range(steps):
        log_density_BNM.sub_(problem.cost_BNM, alpha=1 / config.beta)
        for _ in range(config.inner):
            u_BN = -logspace.logsumexp_(log_density_BNM + (log_b_B1M + v_BM[:, None, :]), -1)
            v_BM = -logspace.logsumexp_(log_density_BNM + (log_a_BN1 + u_BN[:, :, None]), -2)
        log_density_BNM.add_(u_BN[:, :, None]).add_(v_BM[:, None, :])
        sum_u_BN, sum_v_BM = sum_u_BN + u_BN, sum_v_BM + v_BM
    return _State(log_density_BNM, u_BN, v_BM, sum_u_BN, sum_v_BM)


def _bounds(problem: Problem, state: _State, per_sum: float, per_step: float) -> _Bounds:
    """A feasible plan and the better of two feasible pairs of potentials."""
    log_plan_BNM = (state.log_density_BNM + problem.a_BN.log()[:, :, None]).add_(problem.b_BM.log()[:, None, :])
    plan_BNM = _rounded(problem, logspace.exp_(log_plan_BNM))
    mean_f_BN, mean_g_BM, mean_B = _feasible(problem, per_sum * state.sum_u_BN)
    last_f_BN, last_g_BM, last_B = _feasible(problem, per_step * state.u_BN)
    by_mean_B1 = (mean_B >= last_B)[:, None]
    gap_B = (problem.cost_BNM * plan_BNM).sum((-2, -1)) - torch.maximum(mean_B, last_B)
    return _Bounds(
        plan_BNM,
        torch.where(by_mean_B1, mean_f_BN, last_f_BN),
        torch.where(by_mean_B1, mean_g_BM, last_g_BM),
        gap_B,
    )


def _feasible(problem: Problem, f_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best g under f + g ≤ C, then the best f, and what the pair is worth."""
    g_BM = (problem.cost_BNM - f_BN[:, :, None]).amin(-2)
    f_BN = (problem.cost_BNM - g_BM[:, None, :]).amin(-1)
    return f_BN, g_BM, (problem.a_BN * f_BN).sum(-1) + (problem.b_BM * g_BM).sum(-1)


def _rounded(problem: Problem, plan_BNM: Tensor) -> Tensor:
    """Shrink rows, then columns, that have too much, and spread what is missing as a product of the two shortages.

    The plan is changed in place.
    """
    rows_BN, none = plan_BNM.sum(-1), torch.finfo(plan_BNM.dtype).tiny
    plan_BNM.mul_((problem.a_BN / rows_BN.clamp_min(none)).clamp(max=1)[:, :, None])
    plan_BNM.mul_((problem.b_BM / plan_BNM.sum(-2).clamp_min(none)).clamp(max=1)[:, None, :])
    short_BN = (problem.a_BN - plan_BNM.sum(-1)).clamp_min(0)
    short_BM = (problem.b_BM - plan_BNM.sum(-2)).clamp_min(0)
    missing_B11 = short_BM.sum(-1).clamp_min(none)[:, None, None]
    return plan_BNM.addcmul_(short_BN[:, :, None], short_BM[:, None, :] / missing_B11)
