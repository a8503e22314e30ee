"""Entropic optimal transport: Sinkhorn's algorithm (Cuturi, NeurIPS 2013), stabilised, batched, with exact gradient.

The problem is min ⟨P, C⟩ + ε KL(P | a⊗b) over couplings P of a and b, with KL(P | Q) = Σ P log(P/Q). Its solution is
P = a b exp((f + g − C)/ε) with potentials f, g. Against POT: the plan is that of `ot.sinkhorn`. The value `dual` is
that of `ot.solve(..., reg_type="KL")`; ⟨P, C⟩ + ε Σ P log P, the form with the bare entropy, is smaller by
ε (H(a) + H(b)).

Iterations scale a kernel that has the current potentials absorbed in it (Schmitzer, SIAM J. Sci. Comput. 2019, Alg.
2), with one absorption at each check; a block of iterations that leaves the floating-point range is done again by
log-sum-exp. Where ε is small against the costs' range it is approached from above, in factors of `ANNEALING`
(ε-scaling). Where the first block is not enough, a Newton step on the marginal equations stands before the next
(Brauer, Clason, Lorenz & Wirth, 2017), and is dropped where it does not lessen the error.

Gradients are taken at the fixed plan (the envelope theorem), never through the iterations:
`dual`: the plan is the exact derivative of the value at convergence;
`primal`: ⟨P, C⟩ alone. Its gradient is the plan too. That is *not* the derivative of ⟨P(C), C⟩, which has a further
term from the change of P; it is the derivative of `dual`. The two train alike and differ in the number that is logged.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot.precision import full_precision
from otkd.ot.problem import Problem, read, transport_cost
from otkd.ot.result import TransportResult

ANNEALING = 2.0
STEEP = 100.0
"""Costs' range in units of ε from which on ε-scaling pays."""
NEWTON_STEP = 3.0
NEWTON_SIZE = 1024
"""Largest M for which the M × M system of a Newton step is cheaper than the iterations that it saves."""


class Config(SolverConfig):
    """Entropic optimal transport."""

    name: str = "sinkhorn"
    """The plug-in's file name without `.py`."""
    epsilon: PositiveFloat = 0.05
    """Entropic strength, in units of the cost (the transport term divides its costs by their mean first)."""
    max_iters: PositiveInt = 1000
    """Iterations, each one update of both potentials, before it gives up and says so; Newton steps are not counted."""
    tolerance: PositiveFloat = 1e-4
    """L1 marginal error at which it stops."""
    check_every: PositiveInt = 10
    """Iterations between two looks at the error."""
    value: Literal["primal", "dual"] = "dual"
    """`dual` is the entropic value ⟨P, C⟩ + ε KL(P | a⊗b), the one whose gradient is exact; `primal` is ⟨P, C⟩."""


class _State(NamedTuple):
    f_BN: Tensor
    g_BM: Tensor
    plan_BNM: Tensor
    error: float
    """The largest marginal error of the batch."""


def solve(cost_BNM: Tensor, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """Solve the entropic problem for each leading index; see `TransportResult`.

    A cost that is not finite gives a value that is not finite, and is not converged.

    Raises:
        OtkdError: see `otkd.ot.problem.read`.
    """
    with full_precision(cost_BNM):
        problem = read(cost_BNM, a_BN, b_BM)
        with torch.no_grad():
            (f_BN, g_BM, plan_BNM, _), n_iters = _iterate(problem, config)
            dual_B = (problem.a_BN * f_BN).sum(-1) + (problem.b_BM * g_BM).sum(-1)
            error_B = problem.plan_error(plan_BNM)
        batch = cost_BNM.shape[:-2]
        plan = plan_BNM.reshape(cost_BNM.shape)
        value = transport_cost(cost_BNM, plan)
        if config.value == "dual":  # a·f + b·g is the dual objective: the plan's columns are exact, so its mass is 1
            value = value + (dual_B.reshape(batch) - value).detach()
    return TransportResult(
        value_B=value,
        plan_BNM=plan,
        potentials=(f_BN.reshape(*batch, -1), g_BM.reshape(*batch, -1)),
        n_iters=n_iters,
        marginal_error_B=error_B.reshape(batch),
        converged_B=(error_B <= config.tolerance).reshape(batch),
    )


def _iterate(problem: Problem, config: Config) -> tuple[_State, int]:
    """The last state and the number of iterations: through the larger ε, then at ε until it has converged."""
    f_BN = problem.cost_BNM.amin(-1)  # c-transforms, the limit ε → 0: every row and column of the first kernel has a 1
    g_BM = (problem.cost_BNM - f_BN[:, :, None]).amin(-2)
    spread = (problem.cost_BNM.max() - problem.cost_BNM.min()).item()
    n_iters = 0
    for epsilon in _annealing(spread, config):
        f_BN, g_BM, *_ = _block(problem, f_BN, g_BM, epsilon, config.check_every)
        n_iters += config.check_every
    state = _State(f_BN, g_BM, _plan(problem, f_BN, g_BM, config.epsilon), math.inf)
    while math.isfinite(spread) and state.error > config.tolerance and n_iters < config.max_iters:
        state, spent = _advance(problem, state, config, config.max_iters - n_iters)
        n_iters += spent
    return state, n_iters


def _advance(problem: Problem, state: _State, config: Config, left: int) -> tuple[_State, int]:
    """A block of iterations behind a Newton step, or a plain one where that does not lessen the error."""
    steps = min(config.check_every, left)
    spent = 0
    if state.error < math.inf and problem.cost_BNM.shape[-1] <= NEWTON_SIZE:
        tried = _block(problem, *_newton(problem, state, config.epsilon), config.epsilon, steps)
        if tried.error < state.error:
            return tried, steps
        spent, steps = steps, min(steps, left - steps)
    return (_block(problem, state.f_BN, state.g_BM, config.epsilon, steps) if steps else state), spent + steps


def _annealing(spread: float, config: Config) -> list[float]:
    """Larger values of ε on the way to a small one; none where half of `max_iters` would not do for them."""
    if not (math.isfinite(spread) and spread > STEEP * config.epsilon):
        return []
    count = math.ceil(math.log(spread / config.epsilon, ANNEALING)) - 1
    if 2 * count * config.check_every > config.max_iters:
        return []
    return [config.epsilon * ANNEALING**power for power in range(count, 0, -1)]


def _block(problem: Problem, f_BN: Tensor, g_BM: Tensor, epsilon: float, steps: int) -> _State:
    """`steps` iterations, by scaling where that stays in range."""
    for iterate in (_scaling, _log_sum_exp):
        f_new_BN, g_new_BM = iterate(problem, f_BN, g_BM, epsilon, steps)
        plan_BNM = _plan(problem, f_new_BN, g_new_BM, epsilon)
        error = problem.plan_error(plan_BNM).max().item()  # the one wait for the device per block
        if math.isfinite(error):
            break
    return _State(f_new_BN, g_new_BM, plan_BNM, error)


def _scaling(problem: Problem, f_BN: Tensor, g_BM: Tensor, epsilon: float, steps: int) -> tuple[Tensor, Tensor]:
    """Iterate u ← a / (K v), v ← b / (Kᵀ u) with the kernel K = a b exp((f + g − C)/ε), then absorb u and v.

    A point of no weight has an empty row in K; 1 is put in the place of its 0 / 0.
    """
    void_a_BN1, void_b_BM1 = ((weight == 0).to(weight.dtype)[..., None] for weight in (problem.a_BN, problem.b_BM))
    a_BN1, b_BM1 = problem.a_BN[..., None] + void_a_BN1, problem.b_BM[..., None] + void_b_BM1
    kernel_BNM = _plan(problem, f_BN, g_BM, epsilon)
    v_BM1 = torch.ones_like(b_BM1)
    for _ in range(steps):
        u_BN1 = a_BN1 / _matvec(kernel_BNM, v_BM1, void_a_BN1)
        v_BM1 = b_BM1 / _matvec(kernel_BNM.mT, u_BN1, void_b_BM1)
    return f_BN + epsilon * u_BN1[..., 0].log(), g_BM + epsilon * v_BM1[..., 0].log()


def _newton(problem: Problem, state: _State, epsilon: float) -> tuple[Tensor, Tensor]:
    """A Newton step on both marginal equations, no potential moving by more than `NEWTON_STEP` ε.

    With r, c the plan's marginals it solves diag(r) df + P dg = ε (a − r), Pᵀ df + diag(c) dg = ε (b − c) by
    eliminating df.
    The system leaves a constant in (f, −g) open; b bᵀ closes it.
    """
    plan_BNM, b_BM = state.plan_BNM, problem.b_BM
    row_BN, column_BM = plan_BNM.sum(-1), plan_BNM.sum(-2)
    per_row_BN = 1 / torch.where(problem.a_BN > 0, row_BN, 1)
    miss_a_BN, miss_b_BM = problem.a_BN - row_BN, b_BM - column_BM
    diagonal_BM = torch.where(b_BM > 0, column_BM + 10 * torch.finfo(b_BM.dtype).eps * b_BM, 1)
    schur_BMM = torch.diag_embed(diagonal_BM) - plan_BNM.mT @ (plan_BNM * per_row_BN[..., None])
    right_BM = miss_b_BM - _apply(plan_BNM.mT, miss_a_BN * per_row_BN)
    dg_BM = torch.linalg.solve_ex(schur_BMM + b_BM[:, :, None] * b_BM[:, None, :], right_BM[..., None])[0][..., 0]
    df_BN = (miss_a_BN - _apply(plan_BNM, dg_BM)) * per_row_BN
    longest_B = torch.maximum(df_BN.abs().amax(-1), dg_BM.abs().amax(-1))
    stride_B1 = epsilon * (NEWTON_STEP / longest_B).clamp(max=1)[:, None]
    return state.f_BN + stride_B1 * df_BN, state.g_BM + stride_B1 * dg_BM


def _apply(matrix_BNM: Tensor, vector_BM: Tensor) -> Tensor:
    return (matrix_BNM @ vector_BM[..., None])[..., 0]


def _matvec(matrix_BNM: Tensor, vector_BM1: Tensor, plus_BN1: Tensor) -> Tensor:
    if matrix_BNM.is_cuda:  # a matrix product may be set to TF32 there, too coarse for the marginals
        return (matrix_BNM * vector_BM1.mT).sum(-1, keepdim=True) + plus_BN1
    return torch.baddbmm(plus_BN1, matrix_BNM, vector_BM1)


def _log_sum_exp(problem: Problem, f_BN: Tensor, g_BM: Tensor, epsilon: float, steps: int) -> tuple[Tensor, Tensor]:
    """The same iterations on the potentials: slower, and safe for any ε."""
    log_a_BN, log_b_BM = problem.a_BN.log(), problem.b_BM.log()
    scaled_BNM = problem.cost_BNM / epsilon
    for _ in range(steps):
        f_BN = -epsilon * torch.logsumexp((g_BM / epsilon + log_b_BM)[:, None, :] - scaled_BNM, -1)
        g_BM = -epsilon * torch.logsumexp((f_BN / epsilon + log_a_BN)[:, :, None] - scaled_BNM, -2)
    return f_BN, g_BM


def _plan(problem: Problem, f_BN: Tensor, g_BM: Tensor, epsilon: float) -> Tensor:
    """P = a b exp((f + g − C)/ε)."""
    rows_BN1 = (f_BN / epsilon + problem.a_BN.log())[:, :, None]
    columns_B1M = (g_BM / epsilon + problem.b_BM.log())[:, None, :]
    return torch.exp(rows_BN1 + columns_B1M - problem.cost_BNM / epsilon)
