"""The debiased Sinkhorn divergence between two clouds (Genevay et al., AISTATS 2018; Feydy et al., AISTATS 2019).

S(x, y) = OT(x, y) − ½ OT(x, x) − ½ OT(y, y), where OT is the entropic value min ⟨P, C⟩ + ε KL(P | a⊗b) of
`otkd.ot.sinkhorn`, and one scale divides the costs of all three. Entropic transport alone is least where x has shrunk
towards its mean; S is 0 where the weighted clouds agree, and above 0 elsewhere.

The two self-problems have one potential each, found by the averaged iteration f ← ½ (f + T f) (Feydy et al., Sec. 3.1),
which takes few iterations: their kernel has the diagonal 1 and needs no stabilising.

The gradient in the points holds the three plans fixed, which at convergence is exact (the envelope theorem). The plan
is that of the cross problem.

Against geomloss: `SamplesLoss("sinkhorn", p=2, blur=√ε)` has the cost |x − y|² / 2. Against POT:
`ot.bregman.empirical_sinkhorn_divergence` subtracts the ⟨P, C⟩ of each problem, which is no divergence in this sense
(Ramdas et al., 2017).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot import entropic
from otkd.ot import entropic_rules as rules
from otkd.ot.clouds import Clouds
from otkd.ot.cost import scale_of
from otkd.ot.entropic_batch import times
from otkd.ot.precision import full_precision
from otkd.ot.problem import read
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Sinkhorn divergence."""

    takes = "points"

    name: str = "divergence"
    """The plug-in's file name without `.py`."""
    epsilon: PositiveFloat = 0.05
    """Entropic strength, in units of the cost after its normalisation."""
    max_iters: PositiveInt = 1000
    """Iterations of each of the three problems before it gives up and says so. On a GPU no more than 64 are run, and
    always: looking at the error would keep the host waiting."""
    tolerance: PositiveFloat = 1e-4
    """L1 marginal error at which each problem stops, and under which it counts as converged."""
    check_every: PositiveInt = 5
    """The most iterations between two looks at the error."""
    iterations: PositiveInt | None = None
    """Run exactly so many iterations in place of looking at the error; the host never waits for the device."""
    annealing: bool = True
    """Whether, in the cross problem, an ε that is small against the costs' range is approached from a larger one."""


def solve(clouds: Clouds, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """The divergence of two clouds; see `TransportResult`.

    Value and `converged` speak of all three problems, plan, potentials and `marginal_error` of the cross problem.

    Raises:
        OtkdError: see `otkd.ot.problem.read`.
    """
    x_BND, y_BMD = clouds.x_BND, clouds.y_BME
    with full_precision(x_BND):
        costs = _costs(clouds)
        n, m, batch = x_BND.shape[-2], y_BMD.shape[-2], x_BND.shape[:-2]
        with torch.no_grad():
            cross = costs[0][..., n:]
            scale_B11 = (
                cross.new_ones(*batch, 1, 1) if clouds.normalize == "none" else scale_of(cross, clouds.normalize)
            )
            problem = read(cross / scale_B11, a_BN, b_BM)
            solution = entropic.potentials(problem, config)
            rate_B11 = (-1 / config.epsilon / scale_B11).reshape(-1, 1, 1)
            self_x = _solve_self(costs[0][..., :n].reshape(-1, n, n) * rate_B11, problem.a_BN, config)
            self_y = _solve_self(costs[1][..., :m].reshape(-1, m, m) * rate_B11, problem.b_BM, config)
            value_B = solution.dual_B - (self_x.dual_B + self_y.dual_B) / 2
            errors_B = torch.stack([solution.error_B, self_x.error_B, self_y.error_B])
        value = _with_gradient(value_B.reshape(batch), costs, scale_B11, solution.plan_BNM, (self_x, self_y))
    return TransportResult(
        value_B=value,
        plan_BNM=solution.plan_BNM.reshape(*batch, n, m),
        potentials=(solution.f_BN.reshape(*batch, n), solution.g_BM.reshape(*batch, m)),
        n_iters=max(solution.n_iters, self_x.n_iters, self_y.n_iters),
        marginal_error_B=solution.error_B.reshape(batch),
        converged_B=(errors_B <= config.tolerance).all(0).reshape(batch),
    )


def _costs(clouds: Clouds) -> tuple[Tensor, Tensor]:
    """Costs from x to (x, y), and from y to (y, x); of the latter only those to y where y takes no gradient.

    Gradients flow into the points that costs are counted from: costs are symmetric, so that is half of each self-term's
    and the cross term's own.
    """
    x_BND, y_BMD = clouds.x_BND, clouds.y_BME
    if x_BND.shape[:-2] != y_BMD.shape[:-2] or x_BND.shape[-1] != y_BMD.shape[-1] or x_BND.dim() < 2:
        clouds.ground(x_BND, y_BMD)  # refuses them, and says what fits
    fixed_x_BND, fixed_y_BMD = x_BND.detach(), y_BMD.detach()
    from_x = clouds.ground(x_BND, torch.cat([fixed_x_BND, fixed_y_BMD], -2))
    if y_BMD.requires_grad:
        return from_x, clouds.ground(y_BMD, torch.cat([fixed_y_BMD, fixed_x_BND], -2))
    return from_x, clouds.ground(fixed_y_BMD, fixed_y_BMD)


def _with_gradient(
    value: Tensor, costs: tuple[Tensor, Tensor], scale_B11: Tensor, plan_BNM: Tensor, selves: tuple[_Self, _Self]
) -> Tensor:
    """`value` with the derivative of ⟨P, C⟩ − ½ ⟨P_xx, C_xx⟩ − ½ ⟨P_yy, C_yy⟩ at fixed plans."""
    for cost, part, cross in zip(costs, selves, (plan_BNM, plan_BNM.mT), strict=True):
        if cost.requires_grad and torch.is_grad_enabled():
            slope = torch.cat([part.plan_BNN.neg_(), cross], -1).reshape(cost.shape).div_(scale_B11)
            own = value if not value.requires_grad else torch.zeros_like(value)
            held = entropic.at_fixed_plan(own, cost, slope)
            value = held if own is value else value + held
    return value


class _Self(NamedTuple):
    plan_BNN: Tensor
    error_B: Tensor
    dual_B: Tensor
    n_iters: int


def _solve_self(exponent_BNN: Tensor, a_BN: Tensor, config: Config) -> _Self:
    """The problem of a cloud and itself, from −C/ε: u ← √(u / K (a u)) with K = exp(−C/ε); the plan is a u K a u."""
    single = len(exponent_BNN) == 1
    if single:
        exponent_BNN, a_BN = exponent_BNN[0], a_BN[0]
    kernel_BNN = exponent_BNN.clamp_(min=-rules.DEPTH).exp_()
    u_BN, s_BN, n_iters = _scale(kernel_BNN, a_BN, config)
    t_BN = a_BN * u_BN
    excess_B = (t_BN * s_BN).sum(-1) - 1
    dual_B = config.epsilon * (2 * (a_BN * u_BN.log()).sum(-1) - excess_B)
    plan_BNN = kernel_BNN.mul_(t_BN[..., :, None]).mul_(t_BN[..., None, :])
    error_B = 2 * _row_error(u_BN, s_BN, a_BN)
    if single:
        return _Self(plan_BNN[None], error_B[None], dual_B[None], n_iters)
    return _Self(plan_BNN, error_B, dual_B, n_iters)


def _scale(kernel_BNN: Tensor, a_BN: Tensor, config: Config) -> tuple[Tensor, Tensor, int]:
    """u, K (a u), and the number of iterations."""
    most, blind = rules.budget(kernel_BNN.device, config)
    u_BN, s_BN, n_iters = torch.ones_like(a_BN), times(kernel_BNN, a_BN), 0
    while n_iters < most:
        steps = most if blind else min(config.check_every, most - n_iters)
        for _ in range(steps):
            u_BN = (u_BN / s_BN).sqrt_()
            s_BN = times(kernel_BNN, a_BN * u_BN)
        n_iters += steps
        if not blind and not (2 * _row_error(u_BN, s_BN, a_BN) > config.tolerance).any().item():
            break
    return u_BN, s_BN, n_iters


def _row_error(u_BN: Tensor, s_BN: Tensor, a_BN: Tensor) -> Tensor:
    return (a_BN * (u_BN * s_BN - 1)).abs_().sum(-1)
