"""The debiased Sinkhorn divergence between two clouds (Genevay et al., AISTATS 2018; Feydy et al., AISTATS 2019).

S(x, y) = OT(x, y) − ½ OT(x, x) − ½ OT(y, y), where OT is the entropic value min ⟨P, C⟩ + ε KL(P | a⊗b) of
`otkd.ot.sinkhorn`, and one scale divides the costs of all three. Entropic transport alone is least where x has shrunk
towards its mean; S is 0 where the weighted clouds agree, and above 0 elsewhere.

The two self-problems have one potential each, found by the averaged iteration f ← ½ (f + T f) (Feydy et al., Sec. 3.1),
which takes few iterations: with half a point's cost to itself (not 0 for a zero vector under cosine) moved from rows
and columns into its potential, their kernel has the diagonal 1 and needs no stabilising. One problem is solved after
the other, and only its part of the gradient in the points is kept.

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
from otkd.ot import entropic, entropic_cpu
from otkd.ot.clouds import Clouds
from otkd.ot.cost import scale_of
from otkd.ot.entropic_rules import Solution, budget, times
from otkd.ot.points import leaves, pull, with_gradients
from otkd.ot.precision import full_precision, widen
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
    """The most iterations of the cross problem between two decisions whether a Newton step would pay, at least 2."""
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
    points = widen(clouds.x_BND), widen(clouds.y_BME)
    with full_precision(points[0]):
        pulled = leaves(*points)
        scale_B11, weights, solution = _cross(clouds, pulled, a_BN, b_BM, config)
        selves = [
            _own(clouds, leaf, weight_BN, scale_B11, config) for leaf, weight_BN in zip(pulled, weights, strict=True)
        ]
        value_B = solution.dual_B - (selves[0].dual_B + selves[1].dual_B) / 2
        errors_B = torch.stack([solution.error_B, *(own.error_B for own in selves)])
        batch, n, m = points[0].shape[:-2], points[0].shape[-2], points[1].shape[-2]
        value = with_gradients(value_B.reshape(batch), points, pulled)
    return TransportResult(
        value_B=value,
        plan_BNM=solution.plan_BNM.reshape(*batch, n, m),
        potentials=(solution.f_BN.reshape(*batch, n), solution.g_BM.reshape(*batch, m)),
        n_iters=max(solution.n_iters, *(own.n_iters for own in selves)),
        marginal_error_B=solution.error_B.reshape(batch),
        converged_B=(errors_B <= config.tolerance).all(0).reshape(batch),
    )


def _cross(
    clouds: Clouds, pulled: list[Tensor], a_BN: Tensor | None, b_BM: Tensor | None, config: Config
) -> tuple[Tensor, _Weights, Solution]:
    """The scale, the weights and the solution of the problem between the clouds."""
    cost = clouds.ground(*pulled)
    with torch.no_grad():
        scale_B11 = (
            cost.new_ones(*cost.shape[:-2], 1, 1) if clouds.normalize == "none" else scale_of(cost, clouds.normalize)
        )
        problem = read(cost / scale_B11, a_BN, b_BM)
        solution = entropic.potentials(problem, config)
    weights = _Weights(problem.a_BN, problem.b_BM)
    del problem  # for its memory
    pull(cost, solution.plan_BNM.reshape(cost.shape) / scale_B11)
    return scale_B11, weights, solution


def _own(clouds: Clouds, leaf: Tensor, a_BN: Tensor, scale_B11: Tensor, config: Config) -> _Self:
    """The problem of a cloud and itself. Costs are symmetric: its gradient goes by the rows alone, twice."""
    cost, n = clouds.ground(leaf, leaf.detach()), leaf.shape[-2]
    with torch.no_grad():
        plan_BNN, own = _solve_self((cost * (-1 / config.epsilon / scale_B11)).reshape(-1, n, n), a_BN, config)
        slope = plan_BNN.reshape(cost.shape).div_(-scale_B11)
    pull(cost, slope)
    return own


class _Weights(NamedTuple):
    a_BN: Tensor
    b_BM: Tensor


class _Self(NamedTuple):
    error_B: Tensor
    dual_B: Tensor
    n_iters: int


def _solve_self(exponent_BNN: Tensor, a_BN: Tensor, config: Config) -> tuple[Tensor, _Self]:
    """The problem of a cloud and itself, from −C/ε: u ← √(u / K (a u)) with K = exp(−C/ε); the plan is a u K a u.

    The diagonal goes from K into u.
    """
    moved_BN = exponent_BNN.diagonal(dim1=-2, dim2=-1) / 2
    exponent_BNN.sub_(moved_BN[:, :, None]).sub_(moved_BN[:, None, :])
    kernel_BNN = exponent_BNN.clamp_(min=-entropic_cpu.DEPTH).exp_()
    most, blind = budget(kernel_BNN.device, config)
    if blind:
        u_BN, s_BN, n_iters = *_exactly(kernel_BNN, a_BN, most), most
    else:
        u_BN, s_BN, n_iters = entropic_cpu.self_scalings(kernel_BNN, a_BN, config)
    t_BN = a_BN * u_BN
    r_BN = t_BN * s_BN
    dual_B = config.epsilon * (2 * (a_BN * (u_BN.log() - moved_BN)).sum(-1) - (r_BN.sum(-1) - 1))
    plan_BNN = kernel_BNN.mul_(t_BN[:, :, None]).mul_(t_BN[:, None, :])
    return plan_BNN, _Self(2 * (r_BN - a_BN).abs_().sum(-1), dual_B, n_iters)


def _exactly(kernel_BNN: Tensor, a_BN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """u and K (a u) after so many iterations."""
    u_BN, s_BN = torch.ones_like(a_BN), times(kernel_BNN, a_BN)
    for _ in range(most):
        u_BN = u_BN.sqrt_().div_(s_BN.sqrt_())
        s_BN = times(kernel_BNN, a_BN * u_BN)
    return u_BN, s_BN
