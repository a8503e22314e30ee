"""Sliced Wasserstein: transport along lines, where sorting solves it (Rabin, Peyré, Delon & Bernot, SSVM 2011).

Both clouds are projected onto directions θ drawn uniformly from the sphere; the value is the mean over directions of
W_p^p between the projections, the p-th power of the distance: p = 2 for `sqeuclidean`, p = 1 for `euclidean`. For
`cosine` the points are put on the sphere and p = 2 is halved, as 1 − cos = |x − y|² / 2 there (a zero vector stays at
0). The value is divided by `Clouds.scale`; it is at most that of `exact`, and for p = 2 about 1/D of it, since a
direction sees one coordinate of D.

`max` takes the direction along which the clouds differ most instead (Deshpande et al., CVPR 2019): from the best drawn
one, `steps` times the direction of the gradient, θ ← ∇/|∇|, which is projected gradient ascent with a long step and
needs no rate. The best direction met is kept: a local maximum at best, and close to one after a few steps.

On a line W_p^p = ∫ |F⁻¹(t) − G⁻¹(t)|^p dt over the merged steps of both quantile functions. The gradient holds the
order of the projections fixed, exact wherever no two of one cloud coincide, and the direction of `max` (the envelope
theorem; exact where no two change places at the maximum). There is no plan between the points. Nothing waits for the
device but the check of given weights.

Against POT: `sliced_wasserstein_distance` and `max_sliced_wasserstein_distance` are the p-th roots, for the same
directions and without ascent.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from otkd.core.config import SolverConfig
from otkd.ot.clouds import Clouds
from otkd.ot.cost import unit
from otkd.ot.points import Points, read
from otkd.ot.precision import full_precision
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Transport between projections onto random lines."""

    takes = "points"
    matrices = 0

    name: str = "sliced"
    """The plug-in's file name without `.py`."""
    projections: PositiveInt = 64
    """Random directions, drawn anew with each seed."""
    mode: Literal["mean", "max"] = "mean"
    """Mean over the directions, or the direction along which the clouds differ most."""
    steps: NonNegativeInt = 10
    """`max`: steps of ascent from the best of the random directions."""


def solve(clouds: Clouds, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """The sliced transport cost for each leading index; see `TransportResult`. `n_iters` is the number of ascent steps.

    A cloud that is not finite gives a value that is not finite, and is not converged.

    Raises:
        OtkdError: see `otkd.ot.points.read`.
    """
    with full_precision(clouds.x_BND):
        lines = _lines(clouds, a_BN, b_BM)
        directions_KD = _directions(clouds, config.projections, lines.points.x_BND)
        if config.mode == "max":
            directions_KD = _steepest(lines.detached(), directions_KD, config.steps)
        value_B = lines.costs(directions_KD).mean(-1).reshape(clouds.x_BND.shape[:-2]) / clouds.scale[..., 0, 0]
    n_iters = config.steps if config.mode == "max" else 0
    finite_B = value_B.detach().isfinite()
    return TransportResult(value_B, None, None, n_iters, torch.zeros_like(value_B.detach()), finite_B)


class _Lines(NamedTuple):
    """Two clouds, and the cost of transport between their projections."""

    points: Points
    equal: bool
    """Whether all points of a cloud weigh the same."""
    power: Literal[1, 2]
    factor: float

    def detached(self) -> _Lines:
        """The same without gradient into the points."""
        points = self.points
        return self._replace(points=points._replace(x_BND=points.x_BND.detach(), y_BME=points.y_BME.detach()))

    def costs(self, directions_KD: Tensor) -> Tensor:
        """W_p^p (B, K) along directions (K, D), or (B, K, D) that differ from problem to problem."""
        x_BKN, y_BKM = directions_KD @ self.points.x_BND.mT, directions_KD @ self.points.y_BME.mT
        if not self.equal:
            share_BKL, gap_BKL = _weighted(x_BKN, y_BKM, self.points)
            unsound_BK = 0 * (x_BKN.detach().sum(-1) + y_BKM.detach().sum(-1))  # shows points without weight, too
            return (share_BKL * self._power(gap_BKL)).sum(-1) + unsound_BK
        x_BKN, y_BKM = x_BKN.sort(-1).values, y_BKM.sort(-1).values
        if x_BKN.shape == y_BKM.shape:
            return self._power(x_BKN - y_BKM).mean(-1)
        share_L, row_L, column_L = _steps(x_BKN, y_BKM)
        return self._power(x_BKN[..., row_L] - y_BKM[..., column_L]) @ share_L

    def _power(self, gap: Tensor) -> Tensor:
        return gap.abs() if self.power == 1 else self.factor * gap.square()


def _lines(clouds: Clouds, a_BN: Tensor | None, b_BM: Tensor | None) -> _Lines:
    points, equal = read(clouds, a_BN, b_BM), a_BN is None and b_BM is None
    if clouds.cost == "cosine":
        on_sphere = points._replace(x_BND=unit(points.x_BND), y_BME=unit(points.y_BME))
        return _Lines(on_sphere, equal, 2, 0.5)
    return _Lines(points, equal, 1 if clouds.cost == "euclidean" else 2, 1.0)


def _steps(x_BKN: Tensor, y_BKM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths (L,) of the merged steps of two sorted clouds with equal weights, and each one's rank in either."""
    reached_x, reached_y = (
        torch.arange(1, n + 1, dtype=torch.float64, device=x_BKN.device) / n for n in (x_BKN.shape[-1], y_BKM.shape[-1])
    )
    share_L, row_L, column_L = _merge(reached_x, reached_y)
    return share_L.to(x_BKN.dtype), row_L, column_L


def _weighted(x_BKN: Tensor, y_BKM: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Lengths (B, K, L) of the merged steps, and the gaps between both quantile functions there."""
    order_x_BKN, reached_x_BKN = _quantile_steps(x_BKN, points.a_BN)
    order_y_BKM, reached_y_BKM = _quantile_steps(y_BKM, points.b_BM)
    share_BKL, row_BKL, column_BKL = _merge(reached_x_BKN, reached_y_BKM)
    x_BKL = x_BKN.gather(-1, order_x_BKN.gather(-1, row_BKL))
    return share_BKL, x_BKL - y_BKM.gather(-1, order_y_BKM.gather(-1, column_BKL))


def _quantile_steps(x_BKN: Tensor, weight_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the points on each line, and the weight up to each: exactly 1 at the end, so that both clouds meet."""
    order_BKN = x_BKN.detach().argsort(-1)
    reached_BKN = weight_BN[:, None, :].expand_as(x_BKN).gather(-1, order_BKN).cumsum(-1)
    return order_BKN, reached_BKN / reached_BKN[..., -1:]


def _merge(reached_x: Tensor, reached_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the levels (…, N), (…, M) at which two quantile functions step: step lengths and ranks (…, N + M).

    A step ends at its level, and its rank in a cloud is the number of that cloud's levels before. Steps of no length,
    at equal levels, may have any.
    """
    n, m = reached_x.shape[-1], reached_y.shape[-1]
    level, order = torch.cat([reached_x, reached_y], -1).sort(-1)
    of_x = (order < n).long()
    before_x = of_x.cumsum(-1) - of_x
    before_y = torch.arange(n + m, device=order.device) - before_x
    share = level.diff(dim=-1, prepend=torch.zeros_like(level[..., :1]))
    return share, before_x.clamp_max(n - 1), before_y.clamp_max(m - 1)


def _directions(clouds: Clouds, count: int, like_BND: Tensor) -> Tensor:
    """Directions (K, D) from the clouds' seed, drawn in float32 so that every precision sees the same."""
    generator = torch.Generator(like_BND.device).manual_seed(clouds.seed)
    drawn_KD = torch.randn(count, like_BND.shape[-1], generator=generator, device=like_BND.device)
    return F.normalize(drawn_KD.to(like_BND.dtype), dim=-1)


def _steepest(lines: _Lines, directions_KD: Tensor, steps: int) -> Tensor:
    """The direction (B, 1, D) of the largest cost met, in `steps` of ascent from the best of those given."""
    with torch.no_grad():
        first_B = lines.costs(directions_KD).argmax(-1)
    best_B1D = directions_KD[first_B][:, None]
    largest_B1, slope_B1D = _ascent(lines, best_B1D)
    for _ in range(steps):
        direction_B1D = F.normalize(slope_B1D, dim=-1)
        cost_B1, slope_B1D = _ascent(lines, direction_B1D)
        best_B1D = torch.where((cost_B1 > largest_B1)[..., None], direction_B1D, best_B1D)
        largest_B1 = torch.maximum(cost_B1, largest_B1)
    return best_B1D


def _ascent(lines: _Lines, direction_B1D: Tensor) -> tuple[Tensor, Tensor]:
    """Costs (B, 1) along a direction (B, 1, D), and their gradient in it."""
    with torch.enable_grad():
        direction_B1D = direction_B1D.detach().requires_grad_()
        cost_B1 = lines.costs(direction_B1D)
        (slope_B1D,) = torch.autograd.grad(cost_B1.sum(), direction_B1D)
    return cost_B1.detach(), slope_B1D
