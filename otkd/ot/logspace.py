"""Exponentials of what may be far below 0: on the CPU those that underflow take torch up to 200 times longer."""

from __future__ import annotations

from torch import Tensor

FLOOR = -80.0
"""Above the underflow of single precision; exp(−80) is 2e-35."""


def exp(x: Tensor) -> Tensor:
    """exp(x), and exactly 0 below `FLOOR`."""
    return x.clamp_min(FLOOR).exp_().mul_(x > FLOOR)


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """log Σ exp(x) along `dim`, where terms below exp(`FLOOR`) of the largest count as that much."""
    largest = x.amax(dim, keepdim=True)
    return (x - largest).clamp_min_(FLOOR).exp_().sum(dim).log_() + largest.squeeze(dim)
