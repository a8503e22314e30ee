"""Two clouds as the solvers that take points have them: checked, batched along one dimension, and led a gradient to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from otkd.core.errors import OtkdError
from otkd.ot.clouds import Clouds
from otkd.ot.precision import widen
from otkd.ot.problem import at_fixed_plan, weights


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
            "a solver takes floats (…, N, D) and (…, M, D) with the same leading dimensions, none of them 0"
            + ("" if any_widths else ", of the same width D")
        )
    dtype = torch.promote_types(widen(x).dtype, y.dtype)
    flat_x_BND, flat_y_BME = (part.to(dtype).reshape(-1, *part.shape[-2:]) for part in (x, y))
    a_BN = weights("a", a, x.shape[:-2], x.shape[-2], flat_x_BND)
    b_BM = weights("b", b, x.shape[:-2], y.shape[-2], flat_x_BND)
    return Points(flat_x_BND, flat_y_BME, a_BN, b_BM)


def leaves(*points: Tensor) -> list[Tensor]:
    """The same points, detached, asking for a gradient of their own where theirs is wanted."""
    wanted = torch.is_grad_enabled()
    return [part.detach().requires_grad_(wanted and part.requires_grad) for part in points]


def pull(cost: Tensor, slope: Tensor) -> None:
    """Add the derivative of ⟨slope, cost⟩, with the slope held fixed, to the gradients of the leaves behind `cost`.

    Done at once, it need not keep cost and slope until the backward pass.
    """
    if cost.requires_grad:
        torch.autograd.backward(cost, slope)


def with_gradients(value: Tensor, points: tuple[Tensor, ...], pulled: list[Tensor]) -> Tensor:
    """`value` (…) with the gradients that the leaves have got as its derivative in the points (…, N, D)."""
    for part, leaf in zip(points, pulled, strict=True):
        if leaf.grad is not None:
            more = value.requires_grad
            held = at_fixed_plan(torch.zeros_like(value) if more else value, part, leaf.grad)
            value = value + held if more else held
    return value
