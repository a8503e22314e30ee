"""Entropic problems between points on the CPU, from the points to their gradient, without a graph in between.

With squared distances everything is a product of matrices. The plan does not change when a cost loses what belongs to
its row or its column alone, which goes into the potentials: of |x|² + |y|² − 2⟨x, y⟩ the solver needs ⟨x, y⟩ only. The
mean cost comes from means of the points, and at the fixed plan the gradient in x is 2 (P1 ∘ x − P y).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from otkd.ot import entropic_cpu
from otkd.ot.clouds import Clouds
from otkd.ot.compiled import Array, inner, outer
from otkd.ot.entropic_cpu import Parts
from otkd.ot.entropic_rules import Settings, Solution
from otkd.ot.precision import full_precision, widen, widened


def fits(clouds: Clouds) -> bool:
    """Whether these clouds are problems of the kind that is solved here."""
    x_BND, y_BMD = clouds.x_BND, clouds.y_BME
    return (
        (clouds.cost, x_BND.device.type, y_BMD.device.type) == ("sqeuclidean", "cpu", "cpu")
        and clouds.normalize in ("mean", "none")
        and widened(x_BND) == widened(y_BMD)
        and min(x_BND.dim(), y_BMD.dim()) >= 2
        and (x_BND.shape[:-2], x_BND.shape[-1]) == (y_BMD.shape[:-2], y_BMD.shape[-1])
        and min(x_BND.numel(), y_BMD.numel()) > 0
    )


def between(clouds: Clouds, settings: Settings) -> tuple[Tensor, Solution]:
    """The dual values (…), whose derivative in the points is exact at convergence, and the solution; equal weights."""
    found: list[Solution] = []
    value: Tensor = _Between.apply(clouds.x_BND, clouds.y_BME, clouds.normalize == "mean", settings, found)
    return value, found[0]


class _Between(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, by_mean: bool, settings: Settings, found: list[Solution]) -> Tensor:
        ctx.like_x, ctx.like_y = (x.shape, x.dtype), (y.shape, y.dtype)
        x_BND, y_BMD = (widen(part).numpy().reshape((-1, *part.shape[-2:])) for part in (x, y))
        x_BND, y_BMD, *rest = _centred(np.ascontiguousarray(x_BND), np.ascontiguousarray(y_BMD), by_mean)
        moved = torch.from_numpy(x_BND), torch.from_numpy(y_BMD)
        parts = Parts(torch.bmm(moved[0], moved[1].mT).numpy(), *rest)
        solution = entropic_cpu.solve(parts, settings, x.shape[:-2])
        ctx.save_for_backward(*moved, solution.plan_BNM)
        ctx.factor_B = parts.factor_B + 0 * solution.error_B.numpy().reshape(-1)  # NaN where the value is not finite
        found.append(solution)
        return solution.dual_B.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor_B = grad.numpy().reshape(-1) * ctx.factor_B
        x_BND, y_BMD, plan = ctx.saved_tensors
        plan_BNM = plan.reshape((-1, *plan.shape[-2:]))
        by_x, by_y, *_ = ctx.needs_input_grad
        with full_precision(plan):  # a backward pass may be run inside autocast
            grad_x = _pull(plan_BNM, x_BND, y_BMD, factor_B, *ctx.like_x) if by_x else None
            grad_y = _pull(plan_BNM.mT, y_BMD, x_BND, factor_B, *ctx.like_y) if by_y else None
        return grad_x, grad_y, None, None, None


def _pull(
    plan_BNM: Tensor, x_BND: Tensor, y_BMD: Tensor, factor_B: Array, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """factor (P y − P1 ∘ x)."""
    grad_BND = torch.bmm(plan_BNM, y_BMD)
    _subtract(grad_BND.numpy(), plan_BNM.sum(-1).numpy(), x_BND.numpy(), factor_B)
    return grad_BND.reshape(shape).to(dtype)


@outer
def _subtract(image_BND: Array, mass_BN: Array, x_BND: Array, factor_B: Array) -> None:
    for p in range(len(x_BND)):
        for i in range(mass_BN.shape[1]):
            for d in range(x_BND.shape[2]):
                image_BND[p, i, d] = factor_B[p] * (image_BND[p, i, d] - mass_BN[p, i] * x_BND[p, i, d])


@outer
def _centred(x_BND: Array, y_BMD: Array, by_mean: bool) -> tuple[Array, ...]:
    """Both clouds about the mean of y, and from `factor_B` on the `Parts` of their problems, with equal weights.

    `by_mean`: whether costs are divided by their mean. With the mean of y at 0 that is the sum of both mean squares.
    """
    real = x_BND.dtype.type
    tiny = np.finfo(x_BND.dtype).tiny
    moved_x_BND, moved_y_BMD, factor_B = np.empty_like(x_BND), np.empty_like(y_BMD), np.empty_like(x_BND[:, 0, 0])
    row_BN, column_BM = np.empty(x_BND.shape[:2], x_BND.dtype), np.empty(y_BMD.shape[:2], y_BMD.dtype)
    for p in range(len(x_BND)):
        sum_D = np.zeros(y_BMD.shape[2])  # in double precision: the mean of y − its centre is taken for 0 below
        for j in range(y_BMD.shape[1]):
            for d in range(len(sum_D)):
                sum_D[d] += y_BMD[p, j, d]
        centre_D = (sum_D / y_BMD.shape[1]).astype(y_BMD.dtype)
        scale = _move(x_BND[p], centre_D, moved_x_BND[p], row_BN[p])
        scale += _move(y_BMD[p], centre_D, moved_y_BMD[p], column_BM[p])
        if scale < tiny or not by_mean:
            scale = real(1)
        row_BN[p] /= scale
        column_BM[p] /= scale
        factor_B[p] = real(-2) / scale
    a_BN, b_BM = np.full_like(row_BN, 1 / row_BN.shape[1]), np.full_like(column_BM, 1 / column_BM.shape[1])
    g_BM, annealed_B = np.zeros_like(column_BM), np.full(len(x_BND), True)
    return moved_x_BND, moved_y_BMD, factor_B, row_BN, column_BM, a_BN, b_BM, g_BM, annealed_B


@inner
def _move(x_ND: Array, centre_D: Array, moved_ND: Array, length_N: Array) -> float:
    """Fill in the points about a centre, and their squared lengths; gives the mean of these."""
    total = 0.0
    for i in range(len(length_N)):
        length = length_N.dtype.type(0)
        for d in range(len(centre_D)):
            moved_ND[i, d] = x = x_ND[i, d] - centre_D[d]
            length += x * x
        length_N[i] = length
        total += length
    return length_N.dtype.type(total / len(length_N))
