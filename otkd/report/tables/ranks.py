"""Average rank of every method over the pairs of networks, with Friedman's and Nemenyi's tests."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import choice, inference, stats
from otkd.report.frame import budget, pairs, variants
from otkd.report.inference import Ranks
from otkd.report.table import Table
from otkd.report.tables.accuracy import Line, lines
from otkd.report.tables.differences import p_value

TITLE = "Average rank over pairs"
ORDER = 38


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """The table; none below two pairs or three methods that have a whole figure on each."""
    figures = means(frame)
    return [_table(frame, figures)] if testable(figures) else []


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """Pair × method: mean of the figure that is compared, of the methods that have one on every pair.

    Pairs on which nothing has finished yet do not count, and a mean over fewer seeds than others have there is none:
    those left may be the lucky ones.
    """
    return pd.DataFrame({pair: _whole(lines(frame, pair)) for pair in pairs(frame)}).T.dropna(how="all").dropna(axis=1)


def _whole(found: Iterable[Line]) -> dict[str, float]:
    """Method → its mean; NaN where it lost seeds."""
    summaries = {line.variant: line.cell.summary for line in found}
    most = max((summary.n for summary in summaries.values()), default=0)
    return {name: summary.mean if summary.n == most else math.nan for name, summary in summaries.items()}


def ranked(frame: pd.DataFrame, figures: pd.DataFrame) -> Ranks:
    """Ranks of what `means` gives, and the tests of them."""
    return inference.ranks(figures * choice.metric(frame).sign)


def testable(figures: pd.DataFrame) -> bool:
    """Whether there is enough for Friedman's test."""
    return len(figures) >= 2 and figures.shape[1] >= 3


def differ(found: Ranks) -> bool:
    """Whether Friedman's test says that methods differ at all; not where it is NaN, as all are alike on all pairs."""
    return found.p_friedman < inference.ALPHA


def _table(frame: pd.DataFrame, figures: pd.DataFrame) -> Table:
    found, metric = ranked(frame, figures), choice.metric(frame)
    best = str(found.average.index[0])
    p_best = found.p_nemenyi[best] if differ(found) else dict.fromkeys(found.average.index, math.nan)
    text = {
        "average rank": [stats.number(rank) for rank in found.average],
        f"{metric.head}, mean over n = {len(figures)} pairs": [
            stats.number(figures[name].mean(), metric.digits) for name in found.average.index
        ],
        f"p, same as {best} (Nemenyi)": ["" if name == best else p_value(p_best[name]) for name in found.average.index],
    }
    rows = pd.DataFrame(text, index=pd.Index(found.average.index, name="method", dtype=object), dtype=object)
    data = pd.DataFrame({"method": found.average.index, "average_rank": found.average.to_numpy()})
    data["p_nemenyi_to_best"] = [float(p_best[name]) if name != best else math.nan for name in found.average.index]
    data["p_friedman"], data["critical_difference"], data["pairs"] = found.p_friedman, found.critical, len(figures)
    return Table("ranks", TITLE, _caption(frame, figures, found), rows, data)


def _caption(frame: pd.DataFrame, figures: pd.DataFrame, found: Ranks) -> str:
    lacking = [name for name in variants(frame) if name not in figures]
    left_out = f" Left out, for want of a figure with all seeds on some pair: {', '.join(lacking)}." if lacking else ""
    return (
        f"Ranks of mean {choice.metric(frame).by} on each of {len(figures)} pairs, 1 the best, averaged. "
        f"{verdict(found)} Pairs count as independent; the test is rough for few of them.{left_out} {budget(frame)}"
    )


def verdict(found: Ranks) -> str:
    """Friedman's test and Nemenyi's critical difference in a sentence."""
    p_friedman = p_value(found.p_friedman)
    p_friedman = p_friedman if p_friedman.startswith("<") else f"= {p_friedman}"
    if not differ(found):
        return f"Friedman's test finds no difference between the methods (p {p_friedman}), so none is claimed."
    return (
        f"Friedman's test says that the methods differ (p {p_friedman}); average ranks more than "
        f"{found.critical:.2f} apart differ at 5 % (Nemenyi)."
    )
