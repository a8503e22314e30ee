"""The search for a plan between the distances inside two clouds: what `gromov` and `fused_gromov` share.

Gromov–Wasserstein (Mémoli, Found. Comput. Math. 2011) compares distances inside each cloud: a plan P costs
E(P) = Σ (Cx_ik − Cy_jl)² P_ij P_kl = Σ Cx_ik² a_i a_k + Σ Cy_jl² b_j b_l − 2 ⟨Cx P Cy, P⟩, three matrix products
(Peyré, Cuturi & Solomon, ICML 2016, Prop. 1).

Each step of the search solves the transport problem with the cost ∇E(P): exactly, which is the conditional gradient
with full steps, or with entropy, which is Peyré, Cuturi & Solomon's projected gradient. For the costs of `otkd.ot.cost`
E is concave on the couplings (the costs are conditionally negative definite), so a full step never raises the
objective, and the line search of POT's `gromov_wasserstein` ends at full steps too.

What is found is a local optimum. The search is made from two couplings, and the lower end is kept: the product a bᵀ,
where POT begins, and the plan of Mémoli's third lower bound, the optimal transport between points that costs as much
as their distributions of distances to all others differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from otkd.ot import simplex, sinkhorn
from otkd.ot.clouds import Clouds
from otkd.ot.cost import normalized
from otkd.ot.points import Points, leaves, pull, with_gradients
from otkd.ot.problem import Problem
from otkd.ot.result import TransportResult
from otkd.ot.threads import each

PIVOTS = 100_000
"""The most that the network simplex may take for a step."""
INNER_TOLERANCE = 1e-10
"""Marginal error at which the entropic problem of one step is solved."""
LEVELS = 64
"""Quantiles by which the start compares distributions of distances."""


class Settings(Protocol):
    """How to search."""

    @property
    def kind(self) -> Literal["exact", "entropic"]: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def max_iters(self) -> int: ...
    @property
    def tolerance(self) -> float: ...


class Task(NamedTuple):
    """min (1 − α) ⟨P, C⟩ + α E(P) over couplings of a and b, in float64: E cancels digits."""

    inner_x_BNN: Tensor
    inner_y_BMM: Tensor
    cross_BNM: Tensor
    """Costs C between the clouds, or a 0 that stands for them."""
    a_BN: Tensor
    b_BM: Tensor
    alpha: float

    def each(self, change: Callable[[Tensor], Tensor]) -> Task:
        """The task with every tensor changed."""
        inner_x, inner_y, cross, a, b = map(change, self[:5])
        return Task(inner_x, inner_y, cross, a, b, self.alpha)

    def value(self, plan_BNM: Tensor) -> Tensor:
        """The objective, with the plan's own marginals in E, so that E ≥ 0 for every plan."""
        slope_BNM = self.linear(plan_BNM, self.offset(plan_BNM.sum(-1), plan_BNM.sum(-2)), 1)
        return slope_BNM.mul_(plan_BNM).sum((-2, -1))

    def offset(self, row_BN: Tensor, column_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Cx² a (…, N, 1) and Cy² b (…, 1, M), the part of E's slope that all plans with these marginals share."""
        squares_x_BN1 = self.inner_x_BNN.square() @ row_BN[..., None]
        return squares_x_BN1, (self.inner_y_BMM.square() @ column_BM[..., None]).mT

    def linear(self, plan_BNM: Tensor, offset: tuple[Tensor, Tensor], degree: int) -> Tensor:
        """(1 − α) C + degree · α (Cx² a ⊕ Cy² b − 2 Cx P Cy): of degree 2 the slope, of 1 what makes the value."""
        cost_BNM = (self.inner_x_BNN @ plan_BNM) @ self.inner_y_BMM
        cost_BNM.mul_(-2).add_(offset[0]).add_(offset[1]).mul_(degree * self.alpha)
        return cost_BNM.add_(self.cross_BNM, alpha=1 - self.alpha)

    def product(self) -> Tensor:
        """The coupling a bᵀ."""
        return self.a_BN[..., :, None] * self.b_BM[..., None, :]

    def divergence(self, plan_BNM: Tensor) -> Tensor:
        """KL(P | a bᵀ)."""
        product_BNM = self.product()
        shared_BNM = torch.xlogy(plan_BNM, product_BNM, out=product_BNM)
        return torch.xlogy(plan_BNM, plan_BNM).sub_(shared_BNM).sum((-2, -1))

    def pull(self, plan_BNM: Tensor) -> None:
        """Lead the objective's derivative at a fixed plan to the leaves that the costs were made from."""
        pull(self.cross_BNM, (1 - self.alpha) * plan_BNM)
        with torch.no_grad():
            inner_x_BNN, inner_y_BMM = self.inner_x_BNN.detach(), self.inner_y_BMM.detach()
        for graph, own, other, plan in (
            (self.inner_x_BNN, inner_x_BNN, inner_y_BMM, plan_BNM),
            (self.inner_y_BMM, inner_y_BMM, inner_x_BNN, plan_BNM.mT),
        ):
            if graph.requires_grad:
                weight_BN = plan.sum(-1)
                slope_BNN = (plan @ other @ plan.mT).neg_()
                slope_BNN.addcmul_(own * weight_BN[..., :, None], weight_BN[..., None, :])
                pull(graph, slope_BNN.mul_(2 * self.alpha))


class _Found(NamedTuple):
    plan_NM: Tensor
    n_iters: int
    converged: bool
    """Whether one more step would gain less than the tolerance."""


def solve(clouds: Clouds, points: Points, alpha: float, config: Settings) -> TransportResult:
    """Search for the plan on the CPU, then take the objective at it where the clouds are, with gradient into both.

    A cloud that is not finite gives NaN, not converged; its plan is the product.
    """
    pulled = leaves(points.x_BND, points.y_BME)
    task = _task(clouds, points._replace(x_BND=pulled[0], y_BME=pulled[1]), alpha)
    fixed = task.each(Tensor.detach)
    with torch.no_grad():
        found, n_iters, converged_B = _search(fixed.each(Tensor.cpu), config)
        plan_BNM = found.to(points.a_BN.device)
        del found
        value_B = fixed.value(plan_BNM).to(points.a_BN)
    task.pull(plan_BNM)
    del task, fixed
    value_B = with_gradients(value_B, points[:2], pulled)
    plan = plan_BNM.to(points.a_BN)
    error_B = Problem(plan, points.a_BN, points.b_BM).plan_error(plan)
    batch = clouds.x_BND.shape[:-2]
    return TransportResult(
        value_B=value_B.reshape(batch),
        plan_BNM=plan.reshape(*batch, *plan.shape[-2:]),
        potentials=None,
        n_iters=n_iters,
        marginal_error_B=error_B.reshape(batch),
        converged_B=(converged_B.to(value_B.device) & value_B.detach().isfinite()).reshape(batch),
    )


def _task(clouds: Clouds, points: Points, alpha: float) -> Task:
    """Inner distances, each divided by its own `clouds.normalize`; costs between the clouds where α < 1."""
    inner_x_BNN, inner_y_BMM = (
        normalized(clouds.ground(part, part), clouds.normalize).double() for part in (points.x_BND, points.y_BME)
    )
    cross_BNM = inner_x_BNN.new_zeros(len(inner_x_BNN), 1, 1)
    if alpha < 1:
        cross_BNM = normalized(clouds.ground(points.x_BND, points.y_BME), clouds.normalize).double()
    return Task(inner_x_BNN, inner_y_BMM, cross_BNM, points.a_BN.double(), points.b_BM.double(), alpha)


@torch.no_grad()
def _search(task: Task, config: Settings) -> tuple[Tensor, int, Tensor]:
    """Plan, most steps of a search, and convergence of each problem."""
    plan_BNM = torch.empty((*task.a_BN.shape, task.b_BM.shape[-1]), dtype=task.a_BN.dtype)

    def work(index: int) -> tuple[int, bool]:
        with torch.no_grad():  # in every thread
            found = _better(task.each(lambda part: part[index]), config)
        plan_BNM[index] = found.plan_NM
        return found.n_iters, found.converged

    with simplex.silent():
        evidence = each(work, len(plan_BNM), plan_BNM.numel())
    return plan_BNM, max(n_iters for n_iters, _ in evidence), torch.tensor([converged for _, converged in evidence])


def _better(task: Task, config: Settings) -> _Found:
    """The better end of two searches, one after the other, for one problem."""
    offset = task.offset(task.a_BN, task.b_BM)
    first = _descend(task, offset, task.product(), config)
    second = _descend(task, offset, _third_lower_bound(task), config)
    n_iters = max(first.n_iters, second.n_iters)
    kept = second if _judged(task, second.plan_NM, config) < _judged(task, first.plan_NM, config) else first
    return kept._replace(n_iters=n_iters)


def _judged(task: Task, plan_NM: Tensor, config: Settings) -> float:
    """What the search lowers."""
    value = task.value(plan_NM).item()
    return value if config.kind == "exact" else value + config.epsilon * task.divergence(plan_NM).item()


def _third_lower_bound(task: Task) -> Tensor:
    """The plan of Mémoli's third lower bound, with distributions of distances cut to `LEVELS` quantiles."""
    quantile_x_NL = _quantiles(task.inner_x_BNN, task.a_BN)
    quantile_y_ML = _quantiles(task.inner_y_BMM, task.b_BM)
    cost_NM = torch.cdist(quantile_x_NL, quantile_y_ML).square_().mul_(task.alpha / LEVELS)
    cost_NM.add_(task.cross_BNM, alpha=1 - task.alpha)
    found = simplex.vertex(cost_NM.numpy(), task.a_BN.numpy(), task.b_BM.numpy(), PIVOTS)
    return task.product() if found is None else torch.from_numpy(found[0])


def _quantiles(inner_NN: Tensor, weight_N: Tensor) -> Tensor:
    """Quantiles (N, `LEVELS`) of each point's distances to all."""
    distance_NN, order_NN = inner_NN.sort(-1)
    reached_NN = weight_N.expand_as(inner_NN).gather(-1, order_NN).cumsum_(-1)
    del order_NN  # for its memory
    level_L = (torch.arange(LEVELS, dtype=inner_NN.dtype) + 0.5) / LEVELS
    index_NL = torch.searchsorted(reached_NN, level_L.expand(*inner_NN.shape[:-1], LEVELS).contiguous())
    return distance_NN.gather(-1, index_NL.clamp_max_(inner_NN.shape[-1] - 1))


def _descend(task: Task, offset: tuple[Tensor, Tensor], plan_NM: Tensor, config: Settings) -> _Found:
    """Step until a further one would gain less than the tolerance."""
    floor = config.tolerance * task.value(task.product()).item()
    for n_iters in range(1, config.max_iters + 1):
        gain, step_NM, solved = _step(task, offset, plan_NM, config)
        if not gain > floor:  # also where it is not a number
            return _Found(plan_NM, n_iters, solved and gain <= floor)
        plan_NM = step_NM
    return _Found(plan_NM, config.max_iters, False)


def _step(task: Task, offset: tuple[Tensor, Tensor], plan_NM: Tensor, config: Settings) -> tuple[float, Tensor, bool]:
    """By how much the linearised problem's solution is below the plan, 0 where that is stationary; the solution; and
    whether it is one."""
    slope_NM = task.linear(plan_NM, offset, 2)
    value = _dot(slope_NM, plan_NM)
    if config.kind == "exact":
        found = simplex.vertex(slope_NM.numpy(), task.a_BN.numpy(), task.b_BM.numpy(), PIVOTS)
        if found is None:
            return torch.nan, plan_NM, False
        step_NM = torch.from_numpy(found[0])
        return value - _dot(slope_NM, step_NM), step_NM, found[3]
    inner = sinkhorn.Config(epsilon=config.epsilon, tolerance=INNER_TOLERANCE)
    step = sinkhorn.solve(slope_NM, task.a_BN, task.b_BM, inner)
    assert step.plan_BNM is not None
    value += config.epsilon * task.divergence(plan_NM).item()
    return value - step.value_B.item(), step.plan_BNM, bool(step.converged_B)


def _dot(left_NM: Tensor, right_NM: Tensor) -> float:
    return torch.dot(left_NM.flatten(), right_NM.flatten()).item()
