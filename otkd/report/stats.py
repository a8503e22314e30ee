"""Means, spreads and paired differences over seeds, and how a cell of a table says them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DASH = "—"
DIGITS = 9
"""Of points of accuracy, beyond which there is only the rounding of floats: it would break ties."""
SIGNIFICANT = 13
"""Digits of a mean, beyond which there is only the rounding of floats."""


class Summary(NamedTuple):
    """Mean and sample standard deviation (ddof = 1) of `n` figures; NaN where n is too small."""

    mean: float
    std: float
    n: int


class Cell(NamedTuple):
    """The trials of one cell of a table."""

    by_seed: pd.Series
    """Figure of each finished trial, indexed by seed."""
    lacks: str
    """Why trials are not counted, e.g. `diverged ×1, missing ×1`; empty when all are."""

    @property
    def summary(self) -> Summary:
        """Mean and spread over the finished trials."""
        return summarise(self.by_seed)


def summarise(values: Iterable[float]) -> Summary:
    """Mean (without the rounding of floats), sample standard deviation and count of the values that are numbers."""
    array = np.asarray(list(values), dtype=float)
    array = array[np.isfinite(array)]
    mean = float(f"{array.mean():.{SIGNIFICANT}g}") if len(array) else math.nan
    return Summary(mean, float(array.std(ddof=1)) if len(array) > 1 else math.nan, len(array))


def cells(rows: pd.DataFrame, variants: Iterable[str], column: str) -> dict[str, Cell]:
    """The cell of each variant, some of which may have no rows."""
    places, nowhere = rows.groupby("variant", sort=False).indices, np.empty(0, dtype=int)
    arrays = _arrays(rows, column)
    return {name: _cell(*(array[places.get(name, nowhere)] for array in arrays)) for name in variants}


def cell(rows: pd.DataFrame, column: str) -> Cell:
    """The figures `column` of finished trials, and what became of the others."""
    return _cell(*_arrays(rows, column))


def _arrays(rows: pd.DataFrame, column: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Status, seed and figure of each trial."""
    return rows["status"].to_numpy(dtype=object), rows["seed"].to_numpy(), rows[column].to_numpy(dtype=float)


def _cell(status: NDArray[Any], seeds: NDArray[Any], values: NDArray[np.float64]) -> Cell:
    finished = status == "finished"
    counted = finished & np.isfinite(values)
    figures = pd.Series(values[counted], index=seeds[counted])
    words = [f"{state} ×{count}" for state, count in Counter(status[~finished]).items()]
    if counted.sum() < finished.sum():
        words.append(f"no figure ×{finished.sum() - counted.sum()}")
    return Cell(figures, ", ".join(words))


def common(left: Cell, right: Cell) -> tuple[pd.Series, pd.Series]:
    """Both methods' figures of the seeds that both have; several of one seed (averaged axes) as their mean."""
    left_S, right_S = (_one_a_seed(group) for group in (left.by_seed, right.by_seed))
    if left_S.index.equals(right_S.index):
        return left_S, right_S
    seeds = left_S.index.intersection(right_S.index)
    return left_S[seeds], right_S[seeds]


def _one_a_seed(by_seed: pd.Series) -> pd.Series:
    """In order of seeds."""
    if not by_seed.index.is_unique:
        return by_seed.groupby(level=0).mean()
    return by_seed if by_seed.index.is_monotonic_increasing else by_seed.sort_index()


def paired(left: Cell, right: Cell) -> Summary:
    """`left - right` over the seeds that both have."""
    left_S, right_S = common(left, right)
    return summarise((left_S - right_S).round(DIGITS))


def within_spread(difference: Summary) -> bool:
    """Whether a paired difference is no larger than its own spread over seeds (or has none)."""
    return difference.n < 2 or abs(difference.mean) <= difference.std


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number with a true minus sign, and none where what is shown is nought; a dash for no number."""
    if not math.isfinite(value):
        return DASH
    text = f"{abs(value):.{digits}f}"
    mark = "−" if value < 0 else "+" if sign else ""
    return mark + text if float(text) else text


def show(summary: Summary, digits: int = 2, sign: bool = False) -> str:
    """`71.20 ± 0.30`, or the mean alone for one seed."""
    if summary.n == 0:
        return DASH
    mean = number(summary.mean, digits, sign)
    return mean if math.isnan(summary.std) else f"{mean} ± {number(summary.std, digits)}"


def explain(summary: Summary, lacks: str, expected: int, digits: int = 2, sign: bool = False) -> str:
    """A whole cell: the figure and, in brackets, its n where the header says another, and what is lacking."""
    notes = []
    if summary.n and summary.n != expected:
        notes.append(f"n = {summary.n}" + (", no spread" if summary.n == 1 else ""))
    if lacks:
        notes.append(lacks)
    text = show(summary, digits, sign)
    return f"{text} ({'; '.join(notes)})" if notes else text


def header_n(cells: Iterable[Summary]) -> tuple[int, str]:
    """The n that a column's header states, and how: `n = 3`, or `n = 3 unless stated` where cells differ."""
    counts = {summary.n for summary in cells} - {0}
    if not counts:
        return 0, "n = 0"
    top = max(counts)
    return top, f"n = {top}" + (" unless stated" if len(counts) > 1 else "")
