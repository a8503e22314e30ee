"""Two clouds of points and the cost between them: what a solver works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from otkd.core import plugins
from otkd.core.config import SolverConfig
from otkd.core.errors import OtkdError
from otkd.ot.cost import COSTS, SCALES, check_memory, normalized, positive, scale_of, unit
from otkd.ot.precision import check_tensor, full_precision, widen
from otkd.ot.result import TransportResult


@dataclass(frozen=True)
class Clouds:
    """Points x (…, N, D) and y (…, M, E); D and E differ only for the solvers of Gromov's kind.

    Costs are float32 at least. Gradients flow into the points, never into the scale.
    """

    x_BND: Tensor
    y_BME: Tensor
    cost: str = "sqeuclidean"
    """A name in `otkd.ot.cost.COSTS`."""
    normalize: str = "mean"
    """What costs are divided by: `mean`, `max` or `median` of the cross costs, or `none`."""
    seed: int = 0
    """Of whatever a solver draws at random."""

    def __post_init__(self) -> None:
        check_tensor("a cloud", self.x_BND)
        check_tensor("a cloud", self.y_BME)
        if self.cost not in COSTS:
            raise OtkdError(plugins.unknown("cost", self.cost, list(COSTS)))
        if self.normalize not in (*SCALES, "none"):
            raise OtkdError(plugins.unknown("normalisation", self.normalize, [*SCALES, "none"]))

    @cached_property
    def cross(self) -> Tensor:
        """Costs (…, N, M) from x to y, divided by `scale`."""
        return normalized(self.ground(self.x_BND, self.y_BME), self.normalize)

    @cached_property
    def scale(self) -> Tensor:
        """The divisor (…, 1, 1) of every cost: detached, 1 for `none` and where all cross costs are 0.

        The mean of squared Euclidean costs, and that of cosines, comes without a cost matrix.
        """
        x_BND, y_BME = widen(self.x_BND.detach()), widen(self.y_BME.detach())
        if self.normalize == "none":
            return x_BND.new_ones((*x_BND.shape[:-2], 1, 1))
        if self.normalize != "mean" or self.cost not in MEANS or x_BND.shape[-1] != y_BME.shape[-1]:
            return scale_of(self.ground(x_BND, y_BME), self.normalize)
        with full_precision(x_BND):
            return positive(MEANS[self.cost](x_BND, y_BME))[..., None, None]

    def ground(self, left_BND: Tensor, right_BMD: Tensor) -> Tensor:
        """Costs (…, N, M) from any points to any others of the same width, before normalisation."""
        return COSTS[self.cost](left_BND, right_BMD)


def _mean_square(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """The mean of |x − y|²: both clouds' spread about their means, and the square of what lies between these."""
    mean_x_B1D, mean_y_B1D = x_BND.mean(-2, keepdim=True), y_BMD.mean(-2, keepdim=True)
    centred = x_BND - mean_x_B1D, y_BMD - mean_y_B1D
    spread_x_B, spread_y_B = (part.square().sum(-1).mean(-1) for part in centred)
    return spread_x_B + spread_y_B + (mean_x_B1D - mean_y_B1D).square().sum((-2, -1))


def _mean_cosine(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """The mean of 1 − cos. Rounding can bring it to the least that single costs have, not below."""
    mean_x_BD, mean_y_BD = (unit(part).mean(-2) for part in (x_BND, y_BMD))
    return 1 - (mean_x_BD * mean_y_BD).sum(-1)


MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sqeuclidean": _mean_square, "cosine": _mean_cosine}
"""Means of a cost between two clouds (…, N, D), (…, M, D) that need no matrix."""


def transport(
    clouds: Clouds,
    a_BN: Tensor | None,
    b_BM: Tensor | None,
    config: SolverConfig,
    start: tuple[Tensor, Tensor] | None = None,
) -> TransportResult:
    """Solve between two clouds by the solver that `config` belongs to, whatever that solver takes.

    A cost matrix of one's own goes to the `solve` of a solver that takes costs.

    A solver may offer a `shortcut`, the same answer straight from the points; it returns None where it has none.

    Args:
        clouds: the points.
        a_BN: weights of x, which sum to 1; None for equal ones.
        b_BM: weights of y.
        config: a solver's settings; its `name` finds the solver.
        start: potentials (…, N), (…, M) of an earlier problem, for a solver that is `warm`.

    Raises:
        OtkdError: shapes, weights, a cost or a start that the solver cannot take.
    """
    if not isinstance(clouds, Clouds):
        raise OtkdError(f"transport takes Clouds(x, y), not {type(clouds).__name__}; a cost goes to the solver's solve")
    if clouds.cost not in config.costs:
        raise OtkdError(f"{config.name} is not defined for the cost {clouds.cost}; it takes {', '.join(config.costs)}")
    if start is not None and not config.warm:
        raise OtkdError(f"{config.name} takes no start; leave it out, or take a solver that is warm, like sinkhorn")
    x_BND, y_BME = clouds.x_BND, clouds.y_BME
    if min(x_BND.dim(), y_BME.dim()) >= 2:  # others are refused where they are read
        check_memory(x_BND, x_BND.shape[:-1].numel() * y_BME.shape[-2], config.matrices)
    solver = plugins.load("ot", config.name)
    with full_precision(x_BND):
        if start is None and hasattr(solver, "shortcut"):
            found: TransportResult | None = solver.shortcut(clouds, a_BN, b_BM, config)
            if found is not None:
                return found
        more = {} if start is None else {"start": start}
        taken = clouds if config.takes == "points" else clouds.cross
        result: TransportResult = solver.solve(taken, a_BN, b_BM, config, **more)
    if not isinstance(result, TransportResult):
        raise OtkdError(f"{solver.__name__}.solve gave {type(result).__name__}; a solver returns a TransportResult")
    return result
