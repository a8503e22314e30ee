"""Fused Gromov–Wasserstein: costs between the clouds and distances inside them, one plan (Vayer et al., ICML 2019).

min (1 − α) ⟨P, C⟩ + α Σ (Cx_ik − Cy_jl)² P_ij P_kl over couplings P of a and b. α = 0 is `exact` (or, with
entropy, the ⟨P, C⟩ of `sinkhorn`), α = 1 is `gromov`. C is divided by its mean, and each of Cx, Cy by its own (max,
median, as `Clouds.normalize` says), so α weighs numbers of one size.

A local optimum where α > 0, and the gradient at the fixed plan: see `otkd.ot.gromov`. Against POT: the value is the
`fgw_dist` of `fused_gromov_wasserstein` and `entropic_fused_gromov_wasserstein` at the same local optimum.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot import structure
from otkd.ot.clouds import Clouds
from otkd.ot.points import read
from otkd.ot.precision import full_precision
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Costs between the clouds and distances inside each."""

    takes = "points"
    waits = True
    matrices = 9

    name: str = "fused_gromov"
    """The plug-in's file name without `.py`."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the distances inside the clouds: 0 is plain transport, 1 is `gromov`."""
    kind: Literal["exact", "entropic"] = "exact"
    """How each step's transport problem is solved: `exact` by the network simplex, or with entropy."""
    epsilon: PositiveFloat = 0.05
    """Entropic strength, in units of the objective (all costs are divided by their mean first)."""
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
        points = read(clouds, a_BN, b_BM)
        return structure.solve(clouds, points, config.alpha, config)
