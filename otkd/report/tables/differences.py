"""Whether a method differs from the student alone and from KD by more than chance: intervals, tests, sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import choice, inference, stats
from otkd.report.frame import budget, pairs, seeds
from otkd.report.inference import Difference, brackets
from otkd.report.table import Table, slug
from otkd.report.tables.accuracy import lines

TITLE = "Differences"
ORDER = 12

HEADS = (
    *("Δ{points}, {n}", "95 %, t", "95 %, bootstrap"),
    *("p, paired t", "p, Holm", "p, Wilcoxon", "effect d", "P(better)"),
)


class Line(NamedTuple):
    """One method against one baseline on one pair."""

    variant: str
    found: Difference
    p_holm: float
    """`found.p_t`, corrected for all methods held against this baseline on this pair."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table per pair and baseline; none with one seed (nothing can be told) or without a baseline."""
    if seeds(frame) < 2:
        return []
    found = [(pair, base, group) for pair in pairs(frame) for base, group in compared(frame, pair).items()]
    return [_table(frame, *place) for place in found if place[-1]]


def compared(frame: pd.DataFrame, pair: str) -> dict[str, list[Line]]:
    """Baseline → every other method that shares a seed with it, in the sweep's order."""
    cells = {line.variant: line.cell for line in lines(frame, pair)}
    known = dict.fromkeys(choice.against(frame, pair).values())
    lower = choice.metric(frame).lower
    return {base: _against(cells, base, lower) for base in known}


def _against(cells: dict[str, stats.Cell], base: str, lower: bool) -> list[Line]:
    every = {name: inference.difference(cell, cells[base], lower) for name, cell in cells.items() if name != base}
    found = {name: item for name, item in every.items() if item.summary.n}
    corrected = inference.holm([item.p_t for item in found.values()])
    return [Line(name, item, p) for (name, item), p in zip(found.items(), corrected, strict=True)]


def _table(frame: pd.DataFrame, pair: str, base: str, found: list[Line]) -> Table:
    expected, n = stats.header_n(line.found.summary for line in found)
    metric = choice.metric(frame)
    cells = zip(*(_cells(line, expected, metric.digits) for line in found), strict=True)
    text = {head.format(n=n, points=metric.points): list(column) for head, column in zip(HEADS, cells, strict=True)}
    rows = pd.DataFrame(text, index=pd.Index([line.variant for line in found], name="method", dtype=object))
    name = f"differences-to-{slug(base)}" + (f"-{slug(pair)}" if len(pairs(frame)) > 1 else "")
    data = pd.DataFrame([_record(pair, base, line) for line in found])
    return Table(name, f"To {base}, {pair}", _caption(frame, pair, base, found), rows.astype(object), data)


def _cells(line: Line, expected: int, digits: int) -> list[str]:
    """A row, in the order of HEADS."""
    found = line.found
    return [
        stats.explain(found.summary, "", expected, digits, sign=True),
        *(brackets(bounds, digits) for bounds in (found.interval, found.bootstrap)),
        *map(p_value, (found.p_t, line.p_holm, found.p_wilcoxon)),
        stats.number(found.effect, 1, sign=True),
        stats.number(found.better),
    ]


def p_value(value: float) -> str:
    """Three digits, never rounded to nought."""
    return "< 0.001" if value < 0.001 else stats.number(value, 3)


def _caption(frame: pd.DataFrame, pair: str, base: str, found: list[Line]) -> str:
    n, _ = stats.header_n(line.found.summary for line in found)
    least = inference.least_p(n)
    rows = frame[frame["pair"] == pair]
    cannot = f" With {n} seeds Wilcoxon's p cannot be below {least:.3g}." if least > inference.ALPHA else ""
    return (
        f"{_what(frame)} less that of {base} over common seeds (paired), mean ± sample "
        "standard deviation. 95 % intervals of the mean: by Student's t, and bootstrap percentiles, which are too "
        f"narrow for few seeds. p: two-sided; Holm's is the paired t-test's corrected for {_family(found)}. "
        "d: mean over standard deviation of the differences. P(better): share of all pairs of runs in which the method "
        f"beats {base}, ties half.{cannot}{_left_out(frame, pair, base, found)} {budget(frame)}"
        f"{choice.first_listed(rows, [base])}"
    )


def _family(found: list[Line]) -> str:
    """What Holm's correction is over, and how many differences are in no test."""
    tests = f"the {inference.family([[line.p_holm for line in found]])} of the table"
    untested = sum(math.isnan(line.p_holm) for line in found)
    reason = "one common seed, or the same difference with every seed"
    return f"{tests} ({untested} of {len(found)} methods cannot be tested: {reason})" if untested else tests


def _left_out(frame: pd.DataFrame, pair: str, base: str, found: list[Line]) -> str:
    shown = {base, *(line.variant for line in found)}
    others = [line.variant for line in lines(frame, pair) if line.variant not in shown]
    return f" Not in the table, for want of a seed that both finished: {', '.join(others)}." if others else ""


def _what(frame: pd.DataFrame) -> str:
    """The figure with its rule, and which way is better where that is not plain."""
    metric = choice.metric(frame)
    what = metric.by[0].upper() + metric.by[1:]
    return f"{what} (lower is better)" if metric.lower else what


def _record(pair: str, base: str, line: Line) -> dict[str, object]:
    found = line.found
    return {
        "pair": pair,
        "baseline": base,
        "method": line.variant,
        **found.summary._asdict(),
        "t_low": found.interval.low,
        "t_high": found.interval.high,
        "bootstrap_low": found.bootstrap.low,
        "bootstrap_high": found.bootstrap.high,
        "p_t": found.p_t,
        "p_holm": line.p_holm,
        "p_wilcoxon": found.p_wilcoxon,
        "effect": found.effect,
        "better": found.better,
    }
