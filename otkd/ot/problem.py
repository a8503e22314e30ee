"""The transport problem as every solver takes it: checked, detached, batched along one dimension."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from otkd.core.errors import OtkdError
from otkd.ot.precision import check_tensor, widen

MASS_TOLERANCE = 1e-3


class Limits(Protocol):
    """How long a solver that iterates may take."""

    @property
    def max_iters(self) -> int: ...
    @property
    def iterations(self) -> int | None: ...


def budget(device: torch.device, limits: Limits, unseen: int) -> tuple[int, bool]:
    """The most iterations, and whether just so many are run without a look at the error.

    Where the host would have to wait for the device to look, `unseen` stands in for a tolerance.
    """
    if limits.iterations is not None:
        return limits.iterations, True
    if device.type == "cpu":
        return limits.max_iters, False
    return min(limits.max_iters, unseen), True


class Problem(NamedTuple):
    """Costs (B, N, M) and marginals (B, N), (B, M) of mass 1, detached, in float32 or float64."""

    cost_BNM: Tensor
    a_BN: Tensor
    b_BM: Tensor

    def plan_error(self, plan_BNM: Tensor) -> Tensor:
        """L1 distance of a plan's marginals from the asked ones, both sides added, per problem."""
        rows = (plan_BNM.sum(-1) - self.a_BN).abs().sum(-1)
        return rows + (plan_BNM.sum(-2) - self.b_BM).abs().sum(-1)


def read(cost: Tensor, a: Tensor | None, b: Tensor | None) -> Problem:
    """Check cost (…, N, M) and marginals (…, N), (…, M); None stands for equal weights.

    Costs that are not finite pass: a diverging network shall show as a value that is not finite, not as a crash.

    Raises:
        OtkdError: shapes that do not fit, no points, weights that are negative or do not sum to 1.
    """
    check_tensor("a cost", cost)
    if cost.dim() < 2 or cost.numel() == 0 or not cost.is_floating_point():
        raise OtkdError(
            f"a cost is a float tensor (…, N, M) in which no dimension is 0; got {tuple(cost.shape)} of {cost.dtype}"
        )
    flat_BNM = widen(cost.detach()).reshape(-1, *cost.shape[-2:]).contiguous()
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    a_BN = weights("a", a, lead, n, flat_BNM)
    b_BM = weights("b", b, lead, m, flat_BNM)
    return Problem(flat_BNM, a_BN, b_BM)


def transport_cost(cost: Tensor, plan: Tensor) -> Tensor:
    """⟨plan, cost⟩ per problem; its gradient in the cost is the plan."""
    value = torch.linalg.vecdot(widen(cost.detach()).flatten(-2), plan.flatten(-2))
    return at_fixed_plan(value, cost, plan)


def at_fixed_plan(value: Tensor, cost: Tensor, plan: Tensor) -> Tensor:
    """`value` (…) with the plan (…, N, M) as its derivative in the cost (…, N, M): the envelope theorem."""
    if not (cost.requires_grad and torch.is_grad_enabled()):
        return value
    held: Tensor = _AtFixedPlan.apply(cost, (value, plan))
    return held


class _AtFixedPlan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
        value, plan = given
        ctx.save_for_backward(plan)
        ctx.dtype = cost.dtype
        return value.clone()  # one of its own, which may be changed in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (plan,) = ctx.saved_tensors
        slope = (grad[..., None, None] if grad.dim() else grad) * plan
        return slope if slope.dtype == ctx.dtype else slope.to(ctx.dtype), None


def weights(name: str, given: Tensor | None, lead: torch.Size, n: int, like: Tensor) -> Tensor:
    """Weights (B, n) that sum to 1, from `given` of shape (…, n); None stands for equal ones.

    Args:
        name: what messages call them.
        given: one weight per point; leading dimensions that it lacks are shared.
        lead: the leading dimensions …, of B problems in all.
        n: points in each problem.
        like: whose type and device they take.

    Raises:
        OtkdError: another shape, weights that are negative or do not sum to 1.
    """
    if given is None:
        return like.new_full((lead.numel(), n), 1 / n)
    check_tensor(f"marginal {name}", given)
    try:
        flat = given.detach().double().expand(*lead, n).reshape(-1, n)
    except RuntimeError:
        raise OtkdError(
            f"marginal {name} has shape {tuple(given.shape)}; it takes {(*lead, n)}, one weight for each point"
        ) from None
    mass = flat.sum(-1, keepdim=True)
    if not bool((flat >= 0).all() & ((mass - 1).abs() <= MASS_TOLERANCE).all()):
        raise OtkdError(
            f"marginal {name} is no probability: smallest weight {flat.min().item():.3g}, "
            f"sums from {mass.min().item():.6g} to {mass.max().item():.6g}; divide non-negative weights by their sum"
        )
    shares = (flat / mass).to(like).contiguous()
    return torch.where(shares < torch.finfo(shares.dtype).tiny, 0, shares)  # subnormal ones have lost their digits
