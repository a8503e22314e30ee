"""Pairwise costs between two clouds of points, and their normalisation.

Shapes: x (…, N, D) and y (…, M, D) give a cost (…, N, M). All is computed in float32 at least (float64 stays), also
inside autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from otkd.core.errors import OtkdError
from otkd.core.plugins import unknown
from otkd.ot.precision import full_precision, widen


def sqeuclidean(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """Squared Euclidean distances by |x|² + |y|² − 2⟨x, y⟩, about the points' common mean to keep digits."""
    return _squared_distances(x_BND, y_BMD)[0]


def euclidean(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """Euclidean distances. Where two points agree to rounding, distance and gradient are 0."""
    squared_BNM, scale_BNM = _squared_distances(x_BND, y_BMD)
    apart_BNM = squared_BNM > torch.finfo(squared_BNM.dtype).eps * scale_BNM
    return torch.where(apart_BNM, squared_BNM, 1).sqrt() * apart_BNM


def cosine(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """One minus the cosine of the angle, from 0 to 2; a zero vector is at 1 from everything."""
    with full_precision(x_BND):
        x, y = _pair(x_BND, y_BMD)
        return 1 - F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sqeuclidean": sqeuclidean,
    "euclidean": euclidean,
    "cosine": cosine,
}

SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda cost_BNM: cost_BNM.mean((-2, -1), keepdim=True),
    "max": lambda cost_BNM: cost_BNM.amax((-2, -1), keepdim=True),
    "median": lambda cost_BNM: cost_BNM.flatten(-2).median(-1).values[..., None, None],
}


def normalized(cost_BNM: Tensor, by: str) -> Tensor:
    """Divide each problem's costs by their detached `mean`, `max` or (lower) `median`; `none` leaves them.

    With it an epsilon means the same at every layer. A cost that is 0 everywhere stays 0.
    """
    if by == "none":
        return cost_BNM
    return cost_BNM / scale_of(cost_BNM, by)


def scale_of(cost_BNM: Tensor, by: str) -> Tensor:
    """The detached `mean`, `max` or (lower) `median` (…, 1, 1) of each problem's costs; 1 where that is 0."""
    if by not in SCALES:
        raise OtkdError(unknown("normalisation", by, [*SCALES, "none"]))
    return positive(SCALES[by](cost_BNM.detach()))


def positive(scale: Tensor) -> Tensor:
    """`scale`, and 1 where it is 0: a divisor."""
    return torch.where(scale > 0, scale, 1)


def _squared_distances(x_BND: Tensor, y_BMD: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances, and |x|² + |y|², whose rounding they inherit."""
    with full_precision(x_BND):
        x, y = _pair(x_BND, y_BMD)
        centre = torch.cat([x, y], -2).mean(-2, keepdim=True).detach()
        x, y = x - centre, y - centre
        scale_BNM = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
        return (scale_BNM - 2 * (x @ y.mT)).clamp_min(0), scale_BNM.detach()


def _pair(x_BND: Tensor, y_BMD: Tensor) -> tuple[Tensor, Tensor]:
    if x_BND.shape[:-2] != y_BMD.shape[:-2] or x_BND.shape[-1] != y_BMD.shape[-1] or x_BND.dim() < 2:
        raise OtkdError(
            f"points of shape {tuple(x_BND.shape)} and {tuple(y_BMD.shape)} cannot be compared: "
            "a cost takes (…, N, D) and (…, M, D) with the same leading dimensions and the same width D"
        )
    return widen(x_BND), widen(y_BMD)
