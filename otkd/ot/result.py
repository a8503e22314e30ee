"""What a solver returns: the value never travels without its convergence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TransportResult(NamedTuple):
    """One solved transport problem per leading index (`B` stands for any number of leading dimensions)."""

    value_B: Tensor
    """Transport cost (or entropic value, see the solver), differentiable with respect to the cost."""
    plan_BNM: Tensor | None
    """The coupling, detached."""
    potentials: tuple[Tensor, Tensor] | None
    """Dual potentials f (…, N) and g (…, M), detached."""
    n_iters: int
    """Iterations spent; the most of all problems in the batch."""
    marginal_error_B: Tensor
    """L1 distance between the plan's marginals and the asked ones, both sides added; masses are 1."""
    converged_B: Tensor
    """Whether the solver reached its tolerance, as booleans."""
