"""Gromov–Wasserstein: transport between clouds that share no space, by the distances inside each (Mémoli, 2011).

min Σ (Cx_ik − Cy_jl)² P_ij P_kl over couplings P of a and b, where Cx and Cy are the costs inside each cloud. The
clouds may have different widths, so no projection is needed. The value is 0 where one cloud is a rotation, reflection
or translation of the other, whatever the order of points.

Each of Cx, Cy is divided by its own mean (max, median, as `Clouds.normalize` says; `none` leaves both), so the value
does not change with the size of either cloud; the mean is over all pairs, whatever their weight.

The problem is not convex: the plan is a local optimum, and `converged` says that it is stationary, not that it is
best. How it is searched for: `otkd.ot.structure`. Equal clouds are found again as a rule, not by any guarantee.

The gradient holds the plan fixed (the envelope theorem): exact wherever the plan found is locally constant (`exact`,
where it is a strict optimum of its step), and the derivative of E(P) + ε KL(P | a bᵀ) for `entropic`, whose value here
is E(P) alone. Squared Euclidean distances enter squared, so the gradient grows with the third power of distance.

Against POT: E is the `gw_dist` of `gromov_wasserstein` and of `entropic_gromov_wasserstein` at the same local optimum.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot import structure
from otkd.ot.clouds import Clouds
from otkd.ot.points import read
from otkd.ot.precision import full_precision
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Distances inside one cloud against those inside the other."""

    takes = "points"
    any_widths = True
    waits = True
    matrices = 8

    name: str = "gromov"
    """The plug-in's file name without `.py`."""
    kind: Literal["exact", "entropic"] = "exact"
    """How each step's transport problem is solved: `exact` by the network simplex, or with entropy."""
    epsilon: PositiveFloat = 0.05
    """Entropic strength, in units of a squared cost (the costs inside each cloud are divided by their mean first)."""
    max_iters: PositiveInt = 1000
    """Steps, each a transport problem, before it gives up and says so."""
    tolerance: PositiveFloat = 1e-7
    """What a further step has to gain, as a share of the product coupling's value; with less it stops."""


def solve(clouds: Clouds, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """Search for a plan for each leading index, on the CPU in float64; see `TransportResult`.

    Raises:
        OtkdError: see `otkd.ot.points.read`.
    """
    with full_precision(clouds.x_BND):
        points = read(clouds, a_BN, b_BM, any_widths=True)
        return structure.solve(clouds, points, 1.0, config)
