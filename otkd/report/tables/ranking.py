"""Methods from best to worst: by accuracy, by cost, and what they gain over the student for what they take longer."""

from __future__ import annotations

import math
from itertools import pairwise

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import stats
from otkd.report.frame import baselines, budget, pairs
from otkd.report.table import Table, slug
from otkd.report.tables import accuracy, cost

TITLE = "Ranking"
ORDER = 35

FEWEST = 4
"""Methods from which on a ranking says more than the table of accuracies."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table a pair; none where there is little to rank."""
    return [_table(frame, pair) for pair in pairs(frame) if len(_ranked(frame, pair)) >= FEWEST]


def _table(frame: pd.DataFrame, pair: str) -> Table:
    data = _ranked(frame, pair)
    base = cost.reference(frame)
    summaries = [stats.Summary(*row) for row in data[["top1_mean", "top1_std", "n"]].itertuples(index=False)]
    expected, n = stats.header_n(summaries)
    text = {
        "rank by accuracy": [_rank(rank) for rank in data["rank_accuracy"]],
        f"test top-1 %, last epoch, {n}": [stats.explain(summary, "", expected) for summary in summaries],
        "apart from the next": _apart(frame, pair, data),
        "rank by cost": [_rank(rank) for rank in data["rank_cost"]],
        "s / epoch": [stats.number(seconds, 2) for seconds in data["epoch_s"]],
    }
    if base is not None:
        text[f"× {base}"] = [stats.number(ratio, 2) for ratio in data["overhead"]]
    rows = pd.DataFrame(text, index=pd.Index(data["method"], name="method", dtype=object), dtype=object)
    name = "ranking" if len(pairs(frame)) == 1 else f"ranking-{slug(pair)}"
    return Table(name, f"{TITLE}, {pair}", _caption(frame), rows, data)


def _rank(rank: float) -> str:
    return "" if math.isnan(rank) else f"{rank:g}"


def _ranked(frame: pd.DataFrame, pair: str) -> pd.DataFrame:
    """The methods that have an accuracy on `pair`, best first; equal means share a rank.

    A mean over fewer seeds than others have gets none by accuracy, and comes last: those left may be the lucky ones.
    """
    base = cost.reference(frame)
    records = []
    for line in accuracy.lines(frame, pair):
        found = line.cell.summary
        seconds = cost.cost(frame, line.variant, pair).summary.mean
        ratio = cost.overhead(frame, line.variant, pair, base) if base is not None else math.nan
        figures = {"top1_mean": found.mean, "top1_std": found.std, "n": found.n, "epoch_s": seconds, "overhead": ratio}
        records.append({"pair": pair, "method": line.variant, **figures, "not_counted": line.cell.lacks})
    ranked = pd.DataFrame(records)
    ranked = ranked[ranked["n"] > 0]
    whole = ranked["top1_mean"].where(ranked["n"] == ranked["n"].max())
    ranked["rank_accuracy"] = whole.rank(ascending=False, method="min")
    ranked["rank_cost"] = ranked["epoch_s"].rank(method="min")
    return ranked.sort_values("rank_accuracy", kind="stable").reset_index(drop=True)


def _apart(frame: pd.DataFrame, pair: str, data: pd.DataFrame) -> list[str]:
    """Whether each ranked method's lead over the next exceeds the spread of that difference over common seeds."""
    order = data.loc[data["rank_accuracy"].notna(), "method"]
    cells = {line.variant: line.cell for line in accuracy.lines(frame, pair)}
    leads = [stats.paired(cells[one], cells[next_]) for one, next_ in pairwise(order)]
    words = ["n too small" if lead.n < 2 else "within spread" if stats.within_spread(lead) else "yes" for lead in leads]
    return words + [""] * (len(data) - len(words))


def _caption(frame: pd.DataFrame) -> str:
    floor = baselines(frame).student
    below = f" What ranks below {floor}, the floor, brought nothing at its weight and this budget." if floor else ""
    return (
        "Methods by mean test accuracy with the weights of the last epoch, ± sample standard deviation over n seeds; "
        "what lacks some of them has no rank by accuracy. "
        "Apart from the next: the lead over the row below is larger than the spread of that difference, paired by "
        "seed; where it is within that spread, the order of the two means nothing. Cost is the seconds of an epoch as "
        f"if the trial had trained alone; trials that ran side by side slow each other.{below} {budget(frame)}"
    )
