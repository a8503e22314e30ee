"""What the solvers share that take points: two checked clouds, and the search for a plan between their inner distances.

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
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from otkd.core.errors import OtkdError
from otkd.ot import exact, sinkhorn
from otkd.ot.clouds import Clouds
from otkd.ot.cost import normalized
from otkd.ot.precision import widen
from otkd.ot.problem import Problem, weights
from otkd.ot.result import TransportResult

INNER_TOLERANCE = 1e-10
"""Marginal error at which the entropic problem of one step is solved."""
LEVELS = 64
"""Quantiles by which the start compares distributions of distances."""


class Points(NamedTuple):
    """Points (B, N, D), (B, M, E) with gradient and weights (B, N), (B, M) of mass 1, in float32 or float64."""

    x_BND: Tensor
    y_BME: Tensor
    a_BN: Tensor
    b_BM: Tensor


def read(clouds: Clouds, a: Tensor | None, b: Tensor | None, any_widths: bool = False) -> Points:
    """Check two clouds (…, N, D), (…, M, E) and their weights; None stands for equal ones. Points need not be finite.

    Raises:
        OtkdError: shapes that do not fit, no points, weights that are negative or do not sum to 1.
    """
    x, y = clouds.x_BND, clouds.y_BME
    same = min(x.dim(), y.dim()) >= 2 and x.shape[:-2] == y.shape[:-2] and (any_widths or x.shape[-1] == y.shape[-1])
    if not same or x.numel() == 0 or y.numel() == 0 or not (x.is_floating_point() and y.is_floating_point()):
        raise OtkdError(
            f"points of shape {tuple(x.shape)} and {tuple(y.shape)}, {x.dtype} and {y.dtype}, are no two clouds: "
            "a solver takes floats (…, N, D) and (…, M, D) with the same leading dimensions and N, M ≥ 1"
            + ("" if any_widths else ", of the same width D")
        )
    dtype = torch.promote_types(widen(x).dtype, y.dtype)
    a_BN, b_BM = (
        weights(name, given, x.shape[:-2], part.shape[-2], x.device).to(x.device, dtype)
        for name, given, part in (("a", a, x), ("b", b, y))
    )
    flat_x_BND, flat_y_BME = (part.to(dtype).reshape(-1, *part.shape[-2:]) for part in (x, y))
    return Points(flat_x_BND, flat_y_BME, a_BN, b_BM)


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
        distortion_BNM = self._distortion(plan_BNM, plan_BNM.sum(-1), plan_BNM.sum(-2))
        return (((1 - self.alpha) * self.cross_BNM + self.alpha * distortion_BNM) * plan_BNM).sum((-2, -1))

    def slope(self, plan_BNM: Tensor) -> Tensor:
        """The objective's gradient at a coupling: a cost."""
        distortion_BNM = self._distortion(plan_BNM, self.a_BN, self.b_BM)
        return (1 - self.alpha) * self.cross_BNM + 2 * self.alpha * distortion_BNM

    def product(self) -> Tensor:
        """The coupling a bᵀ."""
        return self.a_BN[:, :, None] * self.b_BM[:, None, :]

    def divergence(self, plan_BNM: Tensor) -> Tensor:
        """KL(P | a bᵀ)."""
        return (torch.xlogy(plan_BNM, plan_BNM) - torch.xlogy(plan_BNM, self.product())).sum((-2, -1))

    def _distortion(self, plan_BNM: Tensor, row_BN: Tensor, column_BM: Tensor) -> Tensor:
        """Cx² a ⊕ Cy² b − 2 Cx P Cy."""
        squares_x_BN1 = self.inner_x_BNN.square() @ row_BN[..., None]
        squares_y_B1M = (self.inner_y_BMM.square() @ column_BM[..., None]).mT
        return squares_x_BN1 + squares_y_B1M - 2 * (self.inner_x_BNN @ plan_BNM @ self.inner_y_BMM)


def solve(clouds: Clouds, points: Points, alpha: float, config: Settings) -> TransportResult:
    """Search for the plan on the CPU, then take the objective at it where the clouds are, with gradient into both.

    A cloud that is not finite gives NaN, not converged; its plan is the product.
    """
    task = _task(clouds, points, alpha)
    with torch.no_grad():
        found, n_iters, converged_B = _search(task.each(lambda part: part.detach().cpu()), config)
    plan_BNM = found.to(points.a_BN.device)
    value_B, plan = task.value(plan_BNM).to(points.a_BN), plan_BNM.to(points.a_BN)
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
        cross_BNM = clouds.cross.double().reshape(-1, *clouds.cross.shape[-2:])
    return Task(inner_x_BNN, inner_y_BMM, cross_BNM, points.a_BN.double(), points.b_BM.double(), alpha)


def _search(task: Task, config: Settings) -> tuple[Tensor, int, Tensor]:
    """Plan, number of steps and convergence of each problem, from the better of two starts."""
    both = task.each(lambda part: torch.cat([part, part]))
    plan_BNM, n_iters, converged_B = _descend(both, torch.cat([task.product(), _third_lower_bound(task)]), config)
    value_2B = both.value(plan_BNM)
    if config.kind == "entropic":
        value_2B = value_2B + config.epsilon * both.divergence(plan_BNM)
    first_B, second_B = value_2B.chunk(2)
    count = len(first_B)
    kept_B = torch.arange(count, device=first_B.device) + count * (second_B < first_B)
    return plan_BNM[kept_B], n_iters, converged_B[kept_B]


def _third_lower_bound(task: Task) -> Tensor:
    """The plan of Mémoli's third lower bound, with distributions of distances cut to `LEVELS` quantiles."""
    quantile_x_BNL = _quantiles(task.inner_x_BNN, task.a_BN)
    quantile_y_BML = _quantiles(task.inner_y_BMM, task.b_BM)
    bound_BNM = torch.cdist(quantile_x_BNL, quantile_y_BML).square() / LEVELS
    cost_BNM = (1 - task.alpha) * task.cross_BNM + task.alpha * bound_BNM
    return _planned(exact.solve(cost_BNM, task.a_BN, task.b_BM, exact.Config()))


def _quantiles(inner_BNN: Tensor, weight_BN: Tensor) -> Tensor:
    """Quantiles (B, N, `LEVELS`) of each point's distances to all."""
    distance_BNN, order_BNN = inner_BNN.sort(-1)
    reached_BNN = weight_BN[:, None, :].expand_as(inner_BNN).gather(-1, order_BNN).cumsum(-1)
    level_L = (torch.arange(LEVELS, dtype=inner_BNN.dtype, device=inner_BNN.device) + 0.5) / LEVELS
    index_BNL = torch.searchsorted(reached_BNN, level_L.expand(*inner_BNN.shape[:-1], LEVELS).contiguous())
    return distance_BNN.gather(-1, index_BNL.clamp_max(inner_BNN.shape[-1] - 1))


def _descend(task: Task, plan_BNM: Tensor, config: Settings) -> tuple[Tensor, int, Tensor]:
    """Plan, number of steps, and whether one more step would gain less than the tolerance."""
    floor_B = config.tolerance * task.value(task.product())
    converged_B = torch.zeros_like(floor_B, dtype=torch.bool)
    todo, n_iters = torch.arange(len(floor_B), device=floor_B.device), 0
    while len(todo) and n_iters < config.max_iters:
        gain_B, step = _step(task.each(partial(torch.index_select, dim=0, index=todo)), plan_BNM[todo], config)
        converged_B[todo] = step.converged_B & (gain_B <= floor_B[todo])
        worth_B = gain_B > floor_B[todo]
        todo, n_iters = todo[worth_B], n_iters + 1
        plan_BNM[todo] = _planned(step)[worth_B]
    return plan_BNM, n_iters, converged_B


def _step(task: Task, plan_BNM: Tensor, config: Settings) -> tuple[Tensor, TransportResult]:
    """By how much the linearised problem's solution is below the plan, 0 where that is stationary; and the solution."""
    slope_BNM = task.slope(plan_BNM)
    value_B = (slope_BNM * plan_BNM).sum((-2, -1))
    if config.kind == "exact":
        step = exact.solve(slope_BNM, task.a_BN, task.b_BM, exact.Config())
    else:
        inner = sinkhorn.Config(epsilon=config.epsilon, tolerance=INNER_TOLERANCE)
        step = sinkhorn.solve(slope_BNM, task.a_BN, task.b_BM, inner)
        value_B = value_B + config.epsilon * task.divergence(plan_BNM)
    return value_B - step.value_B, step


def _planned(result: TransportResult) -> Tensor:
    assert result.plan_BNM is not None
    return result.plan_BNM
