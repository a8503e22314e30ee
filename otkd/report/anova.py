"""How much of what a grid's configurations differ by each of its settings explains: functional ANOVA."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from otkd.report.inference import DIGITS


class Effect(NamedTuple):
    """One axis by itself, or two beyond what each does by itself."""

    axes: tuple[str, ...]
    """One or two; none stands for all that remains (three axes and more together)."""
    share: float
    """Of the variance of the configurations' means; all effects add to 1. NaN where all means are alike."""
    p: float
    """That the effect is none: F test, seeds as blocks. NaN with one seed, and where seeds leave no residual."""


class Anova(NamedTuple):
    """What explains the differences of a grid."""

    effects: tuple[Effect, ...]
    """Axes in their order, then pairs of them, then what remains (from three axes on)."""
    noise: float
    """The share of the variance of the means that the spread over seeds alone would give on average; at most 1, NaN
    where it is not known."""
    configurations: int
    seeds: int


def anova(figures: pd.DataFrame) -> Anova:
    """Main effects and interactions of two axes on a full grid (Hooker 2007; Hutter et al., ICML 2014).

    With several seeds, the F tests are those of a randomised block design: the residual is how configurations and seeds
    interact.

    Args:
        figures: configuration × seed without gaps; the index has a level per axis and every combination once.
    """
    axes, shape = list(figures.index.names), [len(level) for level in figures.index.remove_unused_levels().levels]
    order = pd.MultiIndex.from_product(figures.index.remove_unused_levels().levels)
    values_CS = figures.reindex(order).to_numpy(dtype=float).round(DIGITS)
    means = values_CS.mean(1).reshape(shape)
    total = float(np.square(means - means.mean()).sum())
    total = total if np.ptp(means.round(DIGITS)) > 0 else math.nan
    residual = _residual(values_CS)
    found = [
        _effect(means, axes, chosen, residual) for size in (1, 2) for chosen in combinations(range(len(axes)), size)
    ]
    if len(axes) > 2:
        found.append(_rest(found, means, total, residual))
    effects = tuple(Effect(one.axes, one.squares / total, one.p) for one in found)
    noise = min(residual.mean / residual.seeds * (means.size - 1) / total, 1.0)  # NaN stays NaN
    return Anova(effects, noise, *values_CS.shape)


class _Residual(NamedTuple):
    mean: float
    """Mean square; NaN with one seed."""
    freedom: int
    seeds: int


class _Squares(NamedTuple):
    axes: tuple[str, ...]
    squares: float
    freedom: int
    p: float


def _residual(values_CS: NDArray[np.float64]) -> _Residual:
    configurations, seeds = values_CS.shape
    freedom = (configurations - 1) * (seeds - 1)
    if not freedom:
        return _Residual(math.nan, 0, seeds)
    fitted_CS = values_CS.mean(1, keepdims=True) + values_CS.mean(0, keepdims=True) - values_CS.mean()
    return _Residual(float(np.square((values_CS - fitted_CS).round(DIGITS)).sum()) / freedom, freedom, seeds)


def _effect(means: NDArray[np.float64], axes: list[str], chosen: tuple[int, ...], residual: _Residual) -> _Squares:
    part = _marginal(means, chosen) - means.mean()
    if len(chosen) == 2:
        part = part - sum(_marginal(means, (axis,)) - means.mean() for axis in chosen)
    freedom = math.prod(means.shape[axis] - 1 for axis in chosen)
    squares = float(np.square(np.broadcast_to(part, means.shape)).sum())
    return _Squares(tuple(axes[axis] for axis in chosen), squares, freedom, _p(squares, freedom, residual))


def _marginal(means: NDArray[np.float64], kept: tuple[int, ...]) -> NDArray[np.float64]:
    """The mean over all other axes, in a shape that broadcasts."""
    others = tuple(axis for axis in range(means.ndim) if axis not in kept)
    return np.asarray(means.mean(axis=others, keepdims=True))


def _rest(found: list[_Squares], means: NDArray[np.float64], total: float, residual: _Residual) -> _Squares:
    squares = max(0.0, total - sum(one.squares for one in found))
    freedom = means.size - 1 - sum(one.freedom for one in found)
    return _Squares((), squares, freedom, _p(squares, freedom, residual))


def _p(squares: float, freedom: int, residual: _Residual) -> float:
    """Of the F test; a mean over seeds counts as many times as there are seeds."""
    if not residual.freedom or residual.mean <= 0:
        return math.nan
    ratio = residual.seeds * squares / freedom / residual.mean
    return float(scipy_stats.f.sf(ratio, freedom, residual.freedom))
