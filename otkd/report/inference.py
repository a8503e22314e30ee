"""What a difference between two methods is worth: intervals, tests, sizes, and the correction for many tests.

Trials of one seed share batches and initial weights, so methods are compared seed by seed. With few seeds little can be
told, and the functions here say NaN rather than a number that means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # loads `scipy.stats` when it is first used
from numpy.typing import NDArray

from otkd.report.stats import DASH, DIGITS, Cell, Summary, common, number, summarise

LEVEL = 0.95
"""Of every interval."""
ALPHA = 1 - LEVEL
"""Below it a p-value counts."""
RESAMPLES = 9999
REMEMBERED = 10_000
"""Differences whose tests are remembered."""


class Interval(NamedTuple):
    """Where the mean lies, at LEVEL; NaN where it cannot be said."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)


class Difference(NamedTuple):
    """`left - right` over the seeds that both have."""

    by_seed: pd.Series
    summary: Summary
    interval: Interval
    """By Student's t."""
    bootstrap: Interval
    """Percentiles of the means of resampled differences; too narrow for few seeds."""
    p_t: float
    """Two-sided, of the paired t-test."""
    p_wilcoxon: float
    """Two-sided, of the signed-rank test."""
    effect: float
    """Cohen's d of paired samples: mean over sample standard deviation."""
    better: float
    """Probability of improvement: that a seed of the left beats a seed of the right (ties count half)."""


def brackets(bounds: Interval, digits: int) -> str:
    """`[+0.10, +0.52]`; a dash where it cannot be said."""
    return DASH if math.isnan(bounds.low) else f"[{', '.join(number(bound, digits, sign=True) for bound in bounds)}]"


def difference(left: Cell, right: Cell, lower: bool = False) -> Difference:
    """Everything that is told of two methods on one pair of networks; `lower`: the lower figure is the better."""
    left_S, right_S = common(left, right)
    by_seed = left_S - right_S
    delta_S = by_seed.to_numpy(dtype=float).round(DIGITS)
    better, worse = (right, left) if lower else (left, right)
    pairs = (tuple(cell.by_seed.round(DIGITS)) for cell in (better, worse))
    return Difference(by_seed, *_told(tuple(delta_S)), _better(*pairs))


@lru_cache(maxsize=REMEMBERED)
def _told(delta: tuple[float, ...]) -> tuple[Summary, Interval, Interval, float, float, float]:
    """What a `Difference` says of its differences alone; a report asks for each several times."""
    delta_S = np.asarray(delta, dtype=float)
    tests = (_p_t(delta_S), _p_wilcoxon(delta_S), _effect(delta_S))
    return summarise(delta_S), interval(delta_S), bootstrap(delta_S), *tests


@lru_cache(maxsize=REMEMBERED)
def _better(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    return probability_of_improvement(left, right)


def interval(values_S: NDArray[np.float64]) -> Interval:
    """Student's t interval of the mean of at least two values that are not all the same."""
    if not _varies(values_S):
        return UNKNOWN
    found = scipy.stats.ttest_1samp(values_S, 0.0).confidence_interval(LEVEL)
    return Interval(float(found.low), float(found.high))


def bootstrap(values_S: NDArray[np.float64]) -> Interval:
    """Percentile interval of the mean of at least three values that are not all the same; always the same draws."""
    if len(values_S) < 3 or not _varies(values_S):
        return UNKNOWN
    found = scipy.stats.bootstrap(
        (values_S,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def unpaired(left: Cell, right: Cell) -> tuple[float, Interval, float]:
    """`left - right` of two sets of runs that share no seed: difference of means, its interval and p (Welch)."""
    left_S, right_S = (cell.by_seed.to_numpy(dtype=float).round(DIGITS) for cell in (left, right))
    mean = float(left_S.mean() - right_S.mean())
    if len(left_S) < 2 or len(right_S) < 2 or not (_varies(left_S) or _varies(right_S)):
        return mean, UNKNOWN, math.nan
    found = scipy.stats.ttest_ind(left_S, right_S, equal_var=False)
    bounds = found.confidence_interval(LEVEL)
    return mean, Interval(float(bounds.low), float(bounds.high)), float(found.pvalue)


def probability_of_improvement(left: Iterable[float], right: Iterable[float]) -> float:
    """Share of all pairs of runs in which the left is better (Agarwal et al., NeurIPS 2021); ties count half."""
    left_S, right_S = np.asarray(list(left), dtype=float), np.asarray(list(right), dtype=float)
    if not len(left_S) or not len(right_S):
        return math.nan
    return float(scipy.stats.mannwhitneyu(left_S, right_S).statistic) / (len(left_S) * len(right_S))


def least_p(n: int) -> float:
    """The smallest two-sided p-value that the signed-rank test of `n` differences can give."""
    return 2 / 2**n


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm 1979), in the same order; NaN is no test and stays NaN."""
    p_M = np.asarray(p_values, dtype=float)
    ascending = np.argsort(p_M)[: np.isfinite(p_M).sum()]  # NaN comes last
    adjusted = np.full(len(p_M), math.nan)
    adjusted[ascending] = np.maximum.accumulate(p_M[ascending] * np.arange(len(ascending), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]


def family(tables: Iterable[Sequence[float]]) -> str:
    """How many tests each of several corrections was over: `3 tests`, or `2 to 3 tests`; NaN is no test."""
    counts = {int(np.isfinite(np.asarray(p_values, dtype=float)).sum()) for p_values in tables}
    least, most = min(counts - {0}, default=0), max(counts)
    return (f"{most}" if least == most else f"{least} to {most}") + f" test{'s' * (most != 1)}"


class Ranks(NamedTuple):
    """Methods by their average rank over blocks (pairs of networks), 1 the best."""

    average: pd.Series
    """Method → average rank, best first."""
    p_friedman: float
    """That all methods are alike; NaN below three methods or two blocks, and where they tie in every block."""
    p_nemenyi: pd.DataFrame
    """Method × method: that two are alike, corrected for all pairs of methods; empty without a Friedman test."""
    critical: float
    """Ranks further apart than this differ at ALPHA (Nemenyi); NaN without a Friedman test."""


def ranks(figures: pd.DataFrame) -> Ranks:
    """Friedman's and Nemenyi's tests (Demšar, JMLR 2006).

    Args:
        figures: block × method, larger is better, no gaps.
    """
    figures = figures.round(DIGITS)
    average = figures.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    blocks, methods = figures.shape
    if methods < 3 or blocks < 2:
        return Ranks(average, math.nan, pd.DataFrame(), math.nan)
    from scikit_posthocs import posthoc_nemenyi_friedman  # brings seaborn; seconds to import

    with np.errstate(invalid="ignore"):  # NaN where all are alike
        p_friedman = float(scipy.stats.friedmanchisquare(*(figures[name] for name in figures)).pvalue)
    p_nemenyi = posthoc_nemenyi_friedman(figures.to_numpy())
    p_nemenyi.index, p_nemenyi.columns = figures.columns, figures.columns
    quantile = scipy.stats.studentized_range.ppf(LEVEL, methods, np.inf) / math.sqrt(2)
    critical = float(quantile * math.sqrt(methods * (methods + 1) / (6 * blocks)))
    return Ranks(average, p_friedman, p_nemenyi, critical)


def _varies(values_S: NDArray[np.float64]) -> bool:
    return len(values_S) > 1 and bool(np.ptp(values_S) > 0)


def _p_t(delta_S: NDArray[np.float64]) -> float:
    return float(scipy.stats.ttest_1samp(delta_S, 0.0).pvalue) if _varies(delta_S) else math.nan


def _p_wilcoxon(delta_S: NDArray[np.float64]) -> float:
    return float(scipy.stats.wilcoxon(delta_S).pvalue) if _varies(delta_S) else math.nan


def _effect(delta_S: NDArray[np.float64]) -> float:
    return float(delta_S.mean() / delta_S.std(ddof=1)) if _varies(delta_S) else math.nan
