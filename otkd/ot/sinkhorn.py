"""Entropic optimal transport: Sinkhorn's algorithm (Cuturi, NeurIPS 2013), stabilised, sped up, batched.

The problem is min ⟨P, C⟩ + ε KL(P | a⊗b) over couplings P of a and b, with KL(P | Q) = Σ P log(P/Q). Its solution is
P = a b exp((f + g − C)/ε) with potentials f, g. Against POT: the plan is that of `ot.sinkhorn`. The value `dual` is
that of `ot.solve(..., reg_type="KL")`; ⟨P, C⟩ + ε Σ P log P, the form with the bare entropy, is smaller by
ε (H(a) + H(b)). `primal` is ⟨P, C⟩ alone, as `ot.sinkhorn2` returns it.

`otkd.ot.entropic` says how it is solved. `gradient` says what the backward pass gives:

`envelope`: the plan, whatever the value. At convergence that is the exact derivative of `dual` in the cost (the
envelope theorem); of ⟨P(C), C⟩ it is not, for the change of P is left out. The two train alike and differ in the number
that is logged. Marginals get no gradient.
`implicit`: the exact derivative of either value at convergence, in the cost and in the marginals that ask for one, by
the implicit function theorem on the marginal equations (Luise, Rudi, Pontil & Ciliberto, NeurIPS 2018; Eisenberger et
al., CVPR 2022): for `primal` the backward pass solves one N × N system in float64.
`unrolled`: the exact derivative of the value after the iterations that were run, converged or not, by autograd through
plain iterations by log-sum-exp, without ε-scaling and Newton steps: 2 N M numbers per iteration stay in memory.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable

from otkd.core.config import SolverConfig
from otkd.core.errors import OtkdError
from otkd.ot import entropic, entropic_points
from otkd.ot.clouds import Clouds
from otkd.ot.entropic_rules import Solution, budget
from otkd.ot.precision import check_tensor, full_precision, widen
from otkd.ot.problem import Problem, at_fixed_plan, read
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Entropic optimal transport."""

    warm = True

    name: str = "sinkhorn"
    """The plug-in's file name without `.py`."""
    epsilon: PositiveFloat = 0.05
    """Entropic strength, in units of the cost (the transport term divides its costs by their mean first)."""
    max_iters: PositiveInt = 1000
    """Iterations before it gives up and says so, each one update of both potentials. On a GPU no more than 64 are run,
    and always: looking at the error would keep the host waiting."""
    tolerance: PositiveFloat = 1e-4
    """L1 marginal error at which it stops, and under which a result counts as converged."""
    check_every: PositiveInt = 5
    """The most iterations between two decisions whether a Newton step would pay, at least 2; under `unrolled`, between
    two looks at the error."""
    iterations: PositiveInt | None = None
    """Run exactly so many iterations in place of looking at the error; the host never waits for the device."""
    annealing: bool = True
    """Whether an ε that is small against the costs' range is approached from a larger one."""
    value: Literal["primal", "dual"] = "dual"
    """`dual` is the entropic value ⟨P, C⟩ + ε KL(P | a⊗b), the one whose gradient is the plan; `primal` is ⟨P, C⟩."""
    gradient: Literal["envelope", "unrolled", "implicit"] = "envelope"
    """`envelope` holds the plan fixed; `implicit` and `unrolled` are the derivative of the value at convergence, or
    after the iterations that were run."""


def solve(
    cost_BNM: Tensor,
    a_BN: Tensor | None,
    b_BM: Tensor | None,
    config: Config,
    *,
    start: tuple[Tensor, Tensor] | None = None,
) -> TransportResult:
    """Solve the entropic problem for each leading index; see `TransportResult`.

    A cost that is not finite gives a value that is not finite, and is not converged. `start` takes the potentials of an
    earlier, similar problem; where they do not help they are left aside.

    Raises:
        OtkdError: see `otkd.ot.problem.read`; a start that is not of this problem's shape.
    """
    with full_precision(cost_BNM):
        problem = read(cost_BNM, a_BN, b_BM)
        batch = cost_BNM.shape[:-2]
        if start is not None:
            _check_start(start, batch, *cost_BNM.shape[-2:])
        if config.gradient == "unrolled":
            value_B, solution = _unrolled(problem, _Inputs.of(problem, cost_BNM, a_BN, b_BM), config, start)
        else:
            with torch.no_grad():
                solution = entropic.potentials(problem, config, start)
                value_B = _value(problem, solution, config)
        if config.gradient == "implicit":
            value_B = _Implicit.apply(*_Inputs.of(problem, cost_BNM, a_BN, b_BM), value_B, solution, config)
        value_B, solution = value_B.reshape(batch), solution.shaped(batch)
        if config.gradient == "envelope":
            value_B = at_fixed_plan(value_B, cost_BNM, solution.plan_BNM)
    return _result(value_B, solution, config)


def shortcut(clouds: Clouds, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult | None:
    """What `solve(clouds.cross, a, b, config)` gives, sooner; None where these are not clouds for that."""
    plain = a_BN is None and b_BM is None and config.iterations is None and config.annealing
    if not (plain and (config.value, config.gradient) == ("dual", "envelope") and entropic_points.fits(clouds)):
        return None
    return _result(*entropic_points.between(clouds, config), config)


def _result(value_B: Tensor, solution: Solution, config: Config) -> TransportResult:
    potentials, error_B = (solution.f_BN, solution.g_BM), solution.error_B
    converged_B = error_B <= config.tolerance  # false where it is not a number
    return TransportResult(value_B, solution.plan_BNM, potentials, solution.n_iters, error_B, converged_B)


def _check_start(start: tuple[Tensor, Tensor], batch: torch.Size, n: int, m: int) -> None:
    for part in start:
        check_tensor("a potential to start from", part)
    given, asked = [tuple(part.shape) for part in start], [(*batch, n), (*batch, m)]
    if given != asked:
        raise OtkdError(
            f"start has potentials of shapes {', '.join(map(str, given))}; this problem takes {asked[0]} and "
            f"{asked[1]}, the potentials of an earlier problem of the same shape"
        )


def _value(problem: Problem, solution: Solution, config: Config) -> Tensor:
    if config.value == "dual":  # a·f + b·g is the dual objective: the plan's columns are exact, so its mass is 1
        return solution.dual_B
    return torch.linalg.vecdot(problem.cost_BNM.flatten(1), solution.plan_BNM.flatten(1)) + 0 * solution.dual_B


class _Inputs(NamedTuple):
    """What the problem was read from, in the problem's shapes, with the gradients that it asks for."""

    cost_BNM: Tensor
    a_BN: Tensor
    b_BM: Tensor

    @classmethod
    def of(cls, problem: Problem, cost_BNM: Tensor, a_BN: Tensor | None, b_BM: Tensor | None) -> _Inputs:
        weights = []
        for given, read_BN in ((a_BN, problem.a_BN), (b_BM, problem.b_BM)):
            if given is None:
                weights.append(read_BN)
            else:
                flat_BN = given.to(read_BN).expand(*cost_BNM.shape[:-2], -1).reshape(read_BN.shape)
                weights.append(flat_BN / flat_BN.sum(-1, keepdim=True))
        return cls(widen(cost_BNM).reshape(problem.cost_BNM.shape), *weights)


class _Implicit(torch.autograd.Function):
    """The derivative of either value at convergence, in the cost and the weights."""

    @staticmethod
    def forward(
        ctx: Any, cost_BNM: Tensor, a_BN: Tensor, b_BM: Tensor, value_B: Tensor, solution: Any, config: Config
    ) -> Tensor:
        ctx.save_for_backward(cost_BNM, solution.plan_BNM, solution.f_BN, solution.g_BM)
        ctx.config = config
        return value_B.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        cost_BNM, plan_BNM, f_BN, g_BM = ctx.saved_tensors
        slope_BNM = plan_BNM
        if ctx.config.value == "primal":
            f_BN, g_BM = _adjoint(cost_BNM.double(), plan_BNM.double())
            bent_BNM = (f_BN[:, :, None] + g_BM[:, None, :] - cost_BNM) * (plan_BNM / ctx.config.epsilon)
            slope_BNM = (plan_BNM + bent_BNM).to(plan_BNM)
        by_weight = (grad_B[:, None] * part.to(plan_BNM) for part in (f_BN, g_BM))
        return grad_B[:, None, None] * slope_BNM, *by_weight, None, None, None


def _adjoint(cost_BNM: Tensor, plan_BNM: Tensor) -> tuple[Tensor, Tensor]:
    """λ, μ of r λ + P μ = (P∘C) 1 and Pᵀ λ + c μ = (P∘C)ᵀ 1, with r, c the plan's marginals: how ⟨P, C⟩ follows a, b.

    λ is found first, from (I − Q Qᵀ) √r λ = …, Q = P / √(r cᵀ). The constant that the equations leave open in (λ, −μ)
    does not show in any derivative; √r √rᵀ closes it, and a trace of the identity what a plan in pieces leaves open.
    """
    moved_BNM = plan_BNM * cost_BNM
    root_BN, root_BM = (plan_BNM.sum(side).sqrt() for side in (-1, -2))
    safe_BN, safe_BM = (torch.where(root > 0, root, 1) for root in (root_BN, root_BM))
    q_BNM = plan_BNM / safe_BN[:, :, None] / safe_BM[:, None, :]
    y_BN1, y_BM1 = (moved_BNM.sum(-1) / safe_BN)[..., None], (moved_BNM.sum(-2) / safe_BM)[..., None]
    matrix_BNN = root_BN[:, :, None] * root_BN[:, None, :] - q_BNM @ q_BNM.mT
    matrix_BNN.diagonal(dim1=-2, dim2=-1).add_(1 + 1e-11)
    factor_BNN, _ = torch.linalg.cholesky_ex(matrix_BNN)
    x_BN1 = torch.cholesky_solve(y_BN1 - q_BNM @ y_BM1, factor_BNN)
    return x_BN1[..., 0] / safe_BN, (y_BM1 - q_BNM.mT @ x_BN1)[..., 0] / safe_BM


def _unrolled(
    problem: Problem, inputs: _Inputs, config: Config, start: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Solution]:
    """The value after plain iterations on the potentials, with their graph, and where they ended."""
    (cost_BNM, a_BN, b_BM), epsilon = inputs, config.epsilon
    log_a_BN, log_b_BM = entropic.log_weights(a_BN), entropic.log_weights(b_BM)
    g_BM = entropic.first_potential(problem, epsilon, start)
    most, blind = budget(cost_BNM.device, config)
    for count in range(1, most + 1):
        f_BN = entropic.soft_min(g_BM, log_b_BM, cost_BNM, epsilon)
        g_BM = entropic.soft_min(f_BN, log_a_BN, cost_BNM.mT, epsilon)
        if count == most or (not blind and count % config.check_every == 0):
            exponent_BNM = f_BN[:, :, None] + g_BM[:, None, :] - cost_BNM
            plan_BNM = torch.exp(exponent_BNM / epsilon + log_a_BN[:, :, None] + log_b_BM[:, None, :])
            error_B = (plan_BNM.detach().sum(-1) - problem.a_BN).abs().sum(-1)
            if not blind and not error_B.max().item() > config.tolerance:
                break
    dual_B = (a_BN * f_BN).sum(-1) + (b_BM * g_BM).sum(-1)
    value_B = dual_B if config.value == "dual" else (plan_BNM * cost_BNM).sum((-2, -1))
    poison_B = 0 * (problem.cost_BNM.amax((-2, -1)) - problem.cost_BNM.amin((-2, -1)))  # NaN where a cost is not finite
    f_BN, g_BM, plan_BNM, dual_B = (part.detach() for part in (f_BN, g_BM, plan_BNM, dual_B))
    return value_B + poison_B, Solution(f_BN, g_BM, plan_BNM, error_B + poison_B, dual_B, count)
