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
    with full_precision(clouds.x_BND):
        joint, scale_B11 = _joint_cost(clouds)
        n, batch = clouds.x_BND.shape[-2], joint.shape[:-2]
        with torch.no_grad():
            cross = read(joint[..., :n, n:] / scale_B11, a_BN, b_BM)
            solution = entropic.potentials(cross, config)
            blocks = ((joint[..., :n, :n], cross.a_BN), (joint[..., n:, n:], cross.b_BM))
            selves = [
                _solve_self((block / scale_B11).reshape(-1, *block.shape[-2:]), w_BN, config) for block, w_BN in blocks
            ]
            value_B = solution.dual_B - (selves[0].dual_B + selves[1].dual_B) / 2
            errors_B = torch.stack([solution.error_B, *(part.error_B for part in selves)])
            slope = _slope(solution.plan_BNM, *(part.plan_BNN for part in selves)).div_(scale_B11.reshape(-1, 1, 1))
        value_B = entropic.at_fixed_plan(value_B.reshape(batch), joint, slope.reshape(joint.shape))
    return TransportResult(
        value_B=value_B,
        plan_BNM=solution.plan_BNM.reshape(*batch, n, -1),
        potentials=(solution.f_BN.reshape(*batch, -1), solution.g_BM.reshape(*batch, -1)),
        n_iters=max(solution.n_iters, *(part.n_iters for part in selves)),
        marginal_error_B=solution.error_B.reshape(batch),
        converged_B=(errors_B <= config.tolerance).all(0).reshape(batch),
    )


def _joint_cost(clouds: Clouds) -> tuple[Tensor, Tensor]:
    """Costs among all points of both clouds: one call is cheaper than three. And the scale of the cross costs."""
    x_BND, y_BMD = clouds.x_BND, clouds.y_BME
    if x_BND.shape[:-2] != y_BMD.shape[:-2] or x_BND.shape[-1] != y_BMD.shape[-1] or x_BND.dim() < 2:
        clouds.ground(x_BND, y_BMD)  # refuses them, and says what fits
    dtype = torch.promote_types(x_BND.dtype, y_BMD.dtype)
    points = torch.cat([x_BND.to(dtype), y_BMD.to(dtype)], -2)
    joint, n = clouds.ground(points, points), x_BND.shape[-2]
    if clouds.normalize == "none":
        return joint, joint.new_ones((*joint.shape[:-2], 1, 1))
    return joint, scale_of(joint[..., :n, n:], clouds.normalize)


class _Self(NamedTuple):
    plan_BNN: Tensor
    error_B: Tensor
    dual_B: Tensor
    n_iters: int


def _solve_self(cost_BNN: Tensor, a_BN: Tensor, config: Config) -> _Self:
    """The problem between a cloud and itself: u ← √(u / K (a u)) with K = exp(−C/ε), and the plan a u K a u."""
    single = cost_BNN.shape[0] == 1
    if single:
        cost_BNN, a_BN = cost_BNN[0], a_BN[0]
    kernel_BNN = (cost_BNN / -config.epsilon).clamp_(min=-rules.DEPTH).exp_()
    u_BN, s_BN, n_iters = _scale(kernel_BNN, a_BN, config)
    error_B = 2 * _row_error(u_BN, s_BN, a_BN)
    t_BN = a_BN * u_BN
    excess_B = (t_BN * s_BN).sum(-1) - 1
    dual_B = config.epsilon * (2 * (a_BN * u_BN.log()).sum(-1) - excess_B)
    plan_BNN = kernel_BNN.mul_(t_BN[..., :, None]).mul_(t_BN[..., None, :])
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


def _slope(cross_BNM: Tensor, self_BNN: Tensor, self_BMM: Tensor) -> Tensor:
    """The divergence's derivative in the joint costs."""
    n = cross_BNM.shape[-2]
    size = sum(cross_BNM.shape[-2:])
    slope = cross_BNM.new_zeros((len(cross_BNM), size, size))
    slope[:, :n, n:] = cross_BNM
    slope[:, :n, :n] = self_BNN.mul_(-0.5)
    slope[:, n:, n:] = self_BMM.mul_(-0.5)
    return slope
