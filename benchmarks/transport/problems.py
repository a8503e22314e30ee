"""Problems that all codes get, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""L1 marginal error, both sides added, that everyone has to reach."""
MAX_ITERS = 1000
FIXED_ITERS = 100


@dataclass(frozen=True, eq=False)
class Problem:
    """Clouds x (…, N, D) and y (…, N, D) in float32, their mean squared distance 1, with weights (*lead, N).

    `lead` is longer than the points' own leading dimensions where all problems share one cost.
    """

    label: str
    x_BND: Tensor
    """The leaf that gradients are taken in."""
    y_BND: Tensor
    a_BN: Tensor
    b_BN: Tensor
    weighted: bool = False

    @property
    def lead(self) -> torch.Size:
        return self.a_BN.shape[:-1]

    @property
    def shared(self) -> bool:
        return self.x_BND.shape[:-2] != self.lead

    @property
    def points(self) -> tuple[Tensor, Tensor]:
        """x and y, once for every problem."""
        x, y = self.x_BND, self.y_BND
        return x.expand(*self.lead, *x.shape[-2:]), y.expand(*self.lead, *y.shape[-2:])

    @property
    def cost(self) -> Tensor:
        """Squared distances (*lead, N, N), computed anew at every look."""
        cost = squared_distances(self.x_BND, self.y_BND)
        return cost.expand(*self.lead, *cost.shape[-2:])

    def exceeds(self, other: Problem) -> bool:
        """Whether it is of the same kind and no smaller in any way."""
        (*kind, n, d), (*its_kind, its_n, its_d) = self.x_BND.shape, other.x_BND.shape
        return (self.lead, kind) == (other.lead, its_kind) and n >= its_n and d >= its_d

    @property
    def entries(self) -> int:
        """Numbers in all its plans."""
        return self.a_BN.numel() * self.b_BN.shape[-1]

    @cached_property
    def diameter(self) -> float:
        """The first scale of geomloss' annealing."""
        both = torch.cat([part.detach().flatten(0, -2) for part in (self.x_BND, self.y_BND)])
        return float((both.amax(0) - both.amin(0)).norm())

    def double(self) -> Problem:
        parts = (self.x_BND, self.y_BND, self.a_BN, self.b_BN)
        x, y, a, b = (part.detach().double() for part in parts)
        return Problem(self.label, x, y, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), self.weighted)

    def marginal_error(self, plan: Tensor) -> float:
        """L1 distance of the plan's marginals from the asked ones, both sides added, the worst problem's."""
        plan = plan.detach().to(self.a_BN.device).double()
        rows = (plan.sum(-1) - self.a_BN.double()).abs().sum(-1)
        return float((rows + (plan.sum(-2) - self.b_BN.double()).abs().sum(-1)).max())


def squared_distances(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    return x_BND.square().sum(-1)[..., :, None] + y_BMD.square().sum(-1)[..., None, :] - 2 * x_BND @ y_BMD.mT


@cache
def random_problem(label: str, *shape: int, weights: int = 0, device: torch.device) -> Problem:
    """Two Gaussian clouds of `shape` (…, N, D), one off the other; `weights` histograms on them, or equal weights."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x, y = draw(*shape), draw(*shape) * torch.linspace(0.5, 1.5, shape[-1]) + 0.3
    scale = squared_distances(x, y).mean((-2, -1), keepdim=True).sqrt()
    x, y = ((part / scale).float().to(device) for part in (x, y))
    size = (weights, shape[-2]) if weights else shape[:-1]
    a, b = ((2 * draw(*size) * bool(weights)).softmax(-1).float().to(device) for _ in range(2))
    return Problem(label, x.requires_grad_(), y, a, b, bool(weights))


def each(problem: Problem, solve: Callable[..., Any], *parts: Tensor, numpy: bool = False) -> Tensor:
    """One problem after the other, for codes that take no batch: `parts` of each problem, then its weights."""
    flat = [part.reshape((-1, *part.shape[len(problem.lead) :])) for part in (*parts, problem.a_BN, problem.b_BN)]
    rows = (part.detach().cpu().numpy() for part in flat) if numpy else flat
    stacked = torch.stack([torch.as_tensor(solve(*one)) for one in zip(*rows, strict=True)])
    return stacked.reshape((*problem.lead, *stacked.shape[1:]))


class Setting(NamedTuple):
    """What is asked of a solver; None where that has no meaning for it."""

    epsilon: float | None = None
    tolerance: float | None = None
    iters: int | None = None

    @property
    def fixed(self) -> bool:
        """Whether all iterations are to be used."""
        return self.iters is not None and self.tolerance is None


class Answer(NamedTuple):
    """A code's own value, and its plan (worked out after the clock has stopped) where it has one."""

    value_B: Tensor
    plan: Callable[[], Tensor] | None = None


Solve = Callable[[Problem, Setting], Answer]
