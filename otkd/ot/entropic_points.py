"""One entropic problem between points on the CPU, from the points to their gradient, without a graph in between.

At the size of a mini-batch the calls cost more than the arithmetic, and autograd's most of all. With squared distances
everything is a product of matrices: the normalised cost is [−2x/s, |x|²/s, 1] [y, 1, |y|²/s]ᵀ, its mean s comes from
means of the points, and at the fixed plan the gradient in x is 2/s (P1 ∘ x − P y).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from otkd.ot import entropic
from otkd.ot.clouds import Clouds
from otkd.ot.cost import check_memory
from otkd.ot.entropic_rules import Settings, Solution
from otkd.ot.precision import widen
from otkd.ot.problem import Problem

Array = Any  # a numpy array of the points' precision


def fits(clouds: Clouds) -> bool:
    """Whether these clouds are one problem of the kind that is solved here."""
    x_ND, y_MD = clouds.x_BND, clouds.y_BME
    return (
        (clouds.cost, x_ND.dim(), y_MD.dim()) == ("sqeuclidean", 2, 2)
        and clouds.normalize in ("mean", "none")
        and widen(x_ND).dtype == widen(y_MD).dtype
        and x_ND.device.type == y_MD.device.type == "cpu"
        and x_ND.shape[1] == y_MD.shape[1]
        and min(x_ND.numel(), y_MD.numel()) > 0
    )


def between(clouds: Clouds, settings: Settings) -> tuple[Tensor, Solution]:
    """The dual value, whose derivative in the points is exact at convergence, and the solution; equal weights."""
    found: list[Solution] = []
    value: Tensor = _Between.apply(widen(clouds.x_BND), widen(clouds.y_BME), clouds.normalize, settings, found)
    return value, found[0]


class _Between(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_MD: Tensor, normalize: str, settings: Settings, found: list[Solution]
    ) -> Tensor:
        check_memory(x_ND, len(x_ND) * len(y_MD))
        x, y, cost_NM, ctx.scale = _cost(x_ND.numpy(), y_MD.numpy(), normalize)
        a_N, b_M = (part.new_full((1, len(part)), 1 / len(part)) for part in (x_ND, y_MD))
        solution = entropic.alone(Problem(cost_NM[None], a_N, b_M), settings)
        ctx.x, ctx.y, ctx.plan_NM = x, y, solution.plan_BNM[0]
        found.append(solution)
        return solution.dual_B[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor = 2 * float(grad) / ctx.scale
        by_x, by_y, *_ = ctx.needs_input_grad
        grad_x = _pull(ctx.plan_NM, ctx.x, ctx.y, factor) if by_x else None
        grad_y = _pull(ctx.plan_NM.mT, ctx.y, ctx.x, factor) if by_y else None
        return grad_x, grad_y, None, None, None


def _cost(x_ND: Array, y_MD: Array, normalize: str) -> tuple[Array, Array, Tensor, float]:
    """Both clouds about their common mean, their cost, and what it was divided by."""
    n, m, width = len(x_ND), len(y_MD), x_ND.shape[1]
    sums_x_D, sums_y_D = np.add.reduce(x_ND, 0), np.add.reduce(y_MD, 0)
    centre_D = (sums_x_D + sums_y_D) / np.asarray(n + m, x_ND.dtype)
    left_ND, right_MD = (np.empty((count, width + 2), x_ND.dtype) for count in (n, m))
    x, y = left_ND[:, :width], right_MD[:, :width]
    np.subtract(x_ND, centre_D, out=x)
    np.subtract(y_MD, centre_D, out=y)
    length_N, length_M = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)
    gap = np.dot(sums_x_D / n - centre_D, sums_y_D / m - centre_D)
    mean = float(length_N.mean() + length_M.mean() - 2 * gap)
    scale = mean if normalize == "mean" and not mean <= 0 else 1.0
    x_ND, y_MD = x.copy(), y
    x *= -2 / scale
    left_ND[:, width], left_ND[:, width + 1] = length_N / scale, 1
    right_MD[:, width], right_MD[:, width + 1] = 1, length_M / scale
    cost_NM = torch.mm(torch.from_numpy(left_ND), torch.from_numpy(right_MD).mT)
    return x_ND, y_MD, cost_NM.clamp_min_(0), scale


def _pull(plan_NM: Tensor, x_ND: Array, y_MD: Array, factor: float) -> Tensor:
    x, y = torch.from_numpy(x_ND), torch.from_numpy(y_MD)
    return (plan_NM.sum(-1, keepdim=True) * x).sub_(plan_NM @ y).mul_(factor)
