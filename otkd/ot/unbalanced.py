"""Entropic transport whose marginals may differ at a price (Chizat, Peyré, Schmitzer & Vialard, Math Comp 2018).

min ⟨P, C⟩ + ε KL(P | a⊗b) + ρ KL(P1 | a) + ρ KL(Pᵀ1 | b) over P ≥ 0, with KL(p | q) = Σ p log(p/q) − p + q. What is
too far from everything is left where it is. The optimum is P = a b exp((f + g − C)/ε); its marginals are
a exp(−f/ρ) and b exp(−g/ρ), and the objective there is (2ρ + ε)(1 − ΣP).

Iterations are those of Séjourné, Vialard & Peyré (AISTATS 2022), in the log domain: each update of a potential also
chooses, in closed form, the best constant to move from f to g. Without it a step may shrink the error by no more than
1/(1 + ε/ρ), which is little where ρ is large; with it the steps become Sinkhorn's as ρ → ∞. Between blocks of them
stands a Newton step on the dual, kept for those problems that it helps; a small ε is approached from above, in factors
of `ANNEALING`.

The value is the whole objective, computed from the dual side, ρ Σ a (1 − e^{−f/ρ}) + ρ Σ b (1 − e^{−g/ρ}) +
ε (1 − ΣP): off by the square of the error that is left. Its derivative in the cost is the plan (envelope theorem).

Disagreements: the plan is that of POT's `ot.unbalanced.sinkhorn_unbalanced(..., reg_type="kl")`; the value of its
`sinkhorn_unbalanced2` is ⟨P, C⟩ alone. geomloss has this value for `debias=False`, with ε = `blur**p` and ρ =
`reach**p`: lengths where there are costs here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot import logspace
from otkd.ot.precision import full_precision
from otkd.ot.problem import Problem, budget, read, transport_cost
from otkd.ot.result import TransportResult

ANNEALING = 2.0
STEEP = 50.0
"""Range of costs that matter, in units of ε, from which on approaching ε from above pays."""
NEWTON_STEP = 3.0
"""Longest Newton step of a potential, in units of ε."""
DEVICE_BUDGET = 64
"""Iterations in place of a tolerance where looking at the error would make the host wait for the device."""
NEWTON_SIZE = 1024
"""Largest M for which the M × M system of a Newton step is cheaper than the iterations that it saves."""


class Config(SolverConfig):
    """Entropic transport with marginals held by a price."""

    balanced = False

    name: str = "unbalanced"
    """The plug-in's file name without `.py`."""
    epsilon: PositiveFloat = 0.05
    """Entropic strength, in units of the cost (the transport term divides its costs by their mean first)."""
    reach: PositiveFloat = 1.0
    """Price ρ of marginals that differ, in units of the cost: what costs more than about 2ρ to move is left alone."""
    max_iters: PositiveInt = 1000
    """Iterations, each one update of both potentials, before it gives up and says so; Newton steps are not counted.
    On a GPU no more than 64 are run, and always: looking at the error would keep the host waiting."""
    tolerance: PositiveFloat = 1e-4
    """L1 distance of the plan's marginals from a exp(−f/ρ) and b exp(−g/ρ), both sides added, at which it stops."""
    check_every: PositiveInt = 10
    """Iterations between two Newton steps, and two looks at that distance."""
    iterations: PositiveInt | None = None
    """Run exactly so many iterations in place of looking at the error; the host never waits for the device."""


class _Kernel(NamedTuple):
    """The problem in units of ε."""

    a_BN: Tensor
    b_BM: Tensor
    log_a_BN: Tensor
    log_b_BM: Tensor
    exponent_BNM: Tensor
    """−C/ε."""
    decay: float
    """ε/ρ."""


class _State(NamedTuple):
    """Potentials in units of ε, their plan, its marginals, and those that the potentials ask for."""

    f_BN: Tensor
    g_BM: Tensor
    plan_BNM: Tensor
    got: tuple[Tensor, Tensor]
    asked: tuple[Tensor, Tensor]

    @property
    def error_B(self) -> Tensor:
        """The L1 norm of the dual's gradient."""
        rows_B, columns_B = ((got - asked).abs().sum(-1) for got, asked in zip(self.got, self.asked, strict=True))
        return rows_B + columns_B


def solve(cost_BNM: Tensor, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """Solve the relaxed problem for each leading index; see `TransportResult`.

    `marginal_error_B` is the distance from a and b themselves, which is meant to be above 0. A cost that is not finite
    gives a value that is not finite, and is not converged. Without marginals, nothing waits for a GPU.

    Raises:
        OtkdError: see `otkd.ot.problem.read`.
    """
    with full_precision(cost_BNM):
        problem = read(cost_BNM, a_BN, b_BM)
        batch = cost_BNM.shape[:-2]
        with torch.no_grad():
            state, dual_B, n_iters = _iterate(problem, config)
            dual = config.epsilon * dual_B.reshape(batch)
        plan = state.plan_BNM.reshape(cost_BNM.shape)
        value = transport_cost(cost_BNM, plan)
        value = value + (dual - value).detach()
    return TransportResult(
        value_B=value,
        plan_BNM=plan,
        potentials=(
            (config.epsilon * state.f_BN).reshape(*batch, -1),
            (config.epsilon * state.g_BM).reshape(*batch, -1),
        ),
        n_iters=n_iters,
        marginal_error_B=problem.plan_error(state.plan_BNM).reshape(batch),
        converged_B=(state.error_B <= config.tolerance).reshape(batch) & value.detach().isfinite(),
    )


def _kernel(problem: Problem, config: Config) -> _Kernel:
    log_a_BN, log_b_BM = problem.a_BN.log(), problem.b_BM.log()
    exponent_BNM = problem.cost_BNM / -config.epsilon
    return _Kernel(problem.a_BN, problem.b_BM, log_a_BN, log_b_BM, exponent_BNM, config.epsilon / config.reach)


def _iterate(problem: Problem, config: Config) -> tuple[_State, Tensor, int]:
    """The last state, its dual in units of ε, and the number of iterations."""
    most, blind = budget(problem.cost_BNM.device, config, DEVICE_BUDGET)
    above = _annealing(_spread(problem, config, blind), most, config)
    f_BN, g_BM = torch.zeros_like(problem.a_BN), torch.zeros_like(problem.b_BM)
    for warm in above:
        kernel = _kernel(problem, warm)
        state = _block(kernel, f_BN, g_BM, config.check_every)
        f_BN, g_BM = (ANNEALING * part for part in _newton(kernel, state))  # in units of the next ε
    kernel, n_iters = _kernel(problem, config), len(above) * config.check_every
    while True:
        steps = min(config.check_every, most - n_iters)
        state, n_iters = _block(kernel, f_BN, g_BM, steps), n_iters + steps
        if n_iters >= most or not (blind or _unfinished(state, config.tolerance)):
            return state, _dual(kernel, state), n_iters
        f_BN, g_BM = _newton(kernel, state)


def _spread(problem: Problem, config: Config, blind: bool) -> float:
    """The range of the costs that matter: what costs more than 2ρ is left alone."""
    if blind:
        return 2 * config.reach
    return min((problem.cost_BNM.max() - problem.cost_BNM.min()).item(), 2 * config.reach)


def _annealing(spread: float, most: int, config: Config) -> list[Config]:
    """Larger values of ε on the way to a small one; none where half of `most` iterations would not do for them."""
    if not spread > STEEP * config.epsilon:  # also where it is not a number
        return []
    count = math.ceil(math.log(spread / (STEEP * config.epsilon), ANNEALING))
    if 2 * count * config.check_every > most:
        return []
    return [config.model_copy(update={"epsilon": config.epsilon * ANNEALING**power}) for power in range(count, 0, -1)]


def _unfinished(state: _State, tolerance: float) -> bool:
    """Whether any problem can still gain: one that has left the finite numbers cannot."""
    error_B = state.error_B
    return bool(((error_B > tolerance) & error_B.isfinite()).any())  # the one wait for the device per block


def _block(kernel: _Kernel, f_BN: Tensor, g_BM: Tensor, steps: int) -> _State:
    """`steps` translation-invariant iterations.

    f ← −log(Σ_j b_j exp(g_j − C_ij/ε)) / (1 + ε/ρ), then f ← f − log(Σ a e^{−fε/ρ} / Σ b e^{−gε/ρ}) / (2 + ε/ρ), which
    maximises the dual with the best constant between f and g; g likewise.
    """
    for _ in range(steps):
        to_rows_B1M = (kernel.log_b_BM + g_BM)[:, None, :]
        f_BN = -logspace.logsumexp_(kernel.exponent_BNM + to_rows_B1M, -1) / (1 + kernel.decay)
        f_BN = f_BN - _imbalance(kernel, f_BN, g_BM) / (2 + kernel.decay)
        to_columns_BN1 = (kernel.log_a_BN + f_BN)[:, :, None]
        g_BM = -logspace.logsumexp_(kernel.exponent_BNM + to_columns_BN1, -2) / (1 + kernel.decay)
        g_BM = g_BM + _imbalance(kernel, f_BN, g_BM) / (2 + kernel.decay)
    return _look(kernel, f_BN, g_BM)


def _imbalance(kernel: _Kernel, f_BN: Tensor, g_BM: Tensor) -> Tensor:
    """The logarithm (B, 1) of how many times more mass f asks for than g."""
    mass_a_B1 = torch.logsumexp(kernel.log_a_BN - kernel.decay * f_BN, -1, keepdim=True)
    return mass_a_B1 - torch.logsumexp(kernel.log_b_BM - kernel.decay * g_BM, -1, keepdim=True)


def _look(kernel: _Kernel, f_BN: Tensor, g_BM: Tensor) -> _State:
    """Move the constant that makes f and g ask for the same mass, and compare with what the plan has."""
    shift_B1 = _imbalance(kernel, f_BN, g_BM) / (2 * kernel.decay)
    f_BN, g_BM = f_BN + shift_B1, g_BM - shift_B1
    to_rows_B1M, to_columns_BN1 = (kernel.log_b_BM + g_BM)[:, None, :], (kernel.log_a_BN + f_BN)[:, :, None]
    plan_BNM = logspace.exp_((kernel.exponent_BNM + to_rows_B1M).add_(to_columns_BN1))
    asked = torch.exp(kernel.log_a_BN - kernel.decay * f_BN), torch.exp(kernel.log_b_BM - kernel.decay * g_BM)
    return _State(f_BN, g_BM, plan_BNM, (plan_BNM.sum(-1), plan_BNM.sum(-2)), asked)


def _newton(kernel: _Kernel, state: _State) -> tuple[Tensor, Tensor]:
    """Potentials after a Newton step on got = asked, where it raises the dual or lessens the error; else as they are.

    With got (r, c), asked (α, β) and w = ε/ρ it solves diag(r + wα) df + P dg = α − r, Pᵀ df + diag(c + wβ) dg = β − c
    by eliminating df. No potential moves by more than `NEWTON_STEP`.
    """
    if kernel.log_b_BM.shape[-1] > NEWTON_SIZE:
        return state.f_BN, state.g_BM
    miss_a_BN, miss_b_BM = (asked - got for asked, got in zip(state.asked, state.got, strict=True))
    row_BN, column_BM = (
        torch.where(got > 0, got + kernel.decay * asked, 1) for asked, got in zip(state.asked, state.got, strict=True)
    )
    per_row_BMN = (state.plan_BNM / row_BN[..., None]).mT
    right_BM1 = miss_b_BM[..., None] - per_row_BMN @ miss_a_BN[..., None]
    schur_BMM = (per_row_BMN @ state.plan_BNM).neg_()
    del per_row_BMN  # for its memory
    schur_BMM.diagonal(dim1=-2, dim2=-1).add_(column_BM * (1 + 10 * torch.finfo(column_BM.dtype).eps))
    dg_BM = torch.linalg.solve_ex(schur_BMM, right_BM1)[0][..., 0]
    del schur_BMM
    df_BN = (miss_a_BN - (state.plan_BNM @ dg_BM[..., None])[..., 0]) / row_BN
    shift_B1 = (kernel.b_BM * dg_BM).sum(-1, keepdim=True)  # `_look` finds the constant, and better
    df_BN, dg_BM = df_BN + shift_B1, dg_BM - shift_B1
    longest_B1 = torch.maximum(df_BN.abs().amax(-1), dg_BM.abs().amax(-1))[:, None]
    stride_B1 = (NEWTON_STEP / longest_B1).clamp(max=1)
    tried = _look(kernel, state.f_BN + stride_B1 * df_BN, state.g_BM + stride_B1 * dg_BM)
    # far off the dual is the judge; in the end it is equal to rounding, and the error is
    better_B1 = ((_dual(kernel, tried) > _dual(kernel, state)) | (tried.error_B < state.error_B))[:, None]
    return torch.where(better_B1, tried.f_BN, state.f_BN), torch.where(better_B1, tried.g_BM, state.g_BM)


def _dual(kernel: _Kernel, state: _State) -> Tensor:
    """The dual objective in units of ε, by expm1: for large ρ the exponentials are near 1."""
    f_BN, g_BM = torch.where(kernel.a_BN > 0, state.f_BN, 0), torch.where(kernel.b_BM > 0, state.g_BM, 0)
    kept_B = (kernel.a_BN * torch.expm1(-kernel.decay * f_BN)).sum(-1)
    kept_B = kept_B + (kernel.b_BM * torch.expm1(-kernel.decay * g_BM)).sum(-1)
    return 1 - state.plan_BNM.sum((-2, -1)) - kept_B / kernel.decay
