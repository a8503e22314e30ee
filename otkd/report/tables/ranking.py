"""Methods from best to worst: by accuracy, by cost, and what they gain over the student for what they take longer."""

from __future__ import annotations

import math
from itertools import pairwise

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import choice, stats
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
    data, metric = _ranked(frame, pair), choice.metric(frame)
    base = cost.reference(frame, pair)
    summaries = [stats.Summary(*row) for row in data[["mean", "std", "n"]].itertuples(index=False)]
    expected, n = stats.header_n(summaries)
    text = {
        f"rank by {_what(frame)}": [_rank(rank) for rank in data["rank_accuracy"]],
        f"{metric.head}, {n}": [stats.explain(summary, "", expected, metric.digits) for summary in summaries],
        "apart from the next": _apart(frame, pair, data),
        "rank by cost": [_rank(rank) for rank in data["rank_cost"]],
        "s / epoch": [stats.number(seconds, 2) for seconds in data["epoch_s"]],
    }
    if base is not None:
        text[f"× {base}"] = [stats.number(ratio, 2) for ratio in data["overhead"]]
    rows = pd.DataFrame(text, index=pd.Index(data["method"], name="method", dtype=object), dtype=object)
    name = "ranking" if len(pairs(frame)) == 1 else f"ranking-{slug(pair)}"
    return Table(name, f"{TITLE}, {pair}", _caption(frame, pair), rows, data)


def _what(frame: pd.DataFrame) -> str:
    """What methods are ranked by, in a word where it is what all take."""
    metric = choice.metric(frame)
    return "accuracy" if metric == choice.DEFAULT else metric.name


def _rank(rank: float) -> str:
    return "" if math.isnan(rank) else f"{rank:g}"


def _ranked(frame: pd.DataFrame, pair: str) -> pd.DataFrame:
    """The methods that have an accuracy on `pair`, best first; equal means share a rank.

    A mean over fewer seeds than others have gets none by accuracy, and comes last: those left may be the lucky ones.
    """
    base = cost.reference(frame, pair)
    costs, records = cost.costs(frame, pair), []
    for line in accuracy.lines(frame, pair):
        found = line.cell.summary
        seconds = costs[line.variant].summary.mean
        ratio = cost.ratio(costs[line.variant], costs[base]) if base is not None else math.nan
        figures = {**found._asdict(), "epoch_s": seconds, "overhead": ratio}
        head = {"pair": pair, "method": line.variant, "metric": choice.metric(frame).column}
        records.append({**head, **figures, "not_counted": line.cell.lacks})
    ranked = pd.DataFrame(records)
    ranked = ranked[ranked["n"] > 0]
    whole = ranked["mean"].where(ranked["n"] == ranked["n"].max())
    ranked["rank_accuracy"] = whole.rank(ascending=choice.metric(frame).lower, method="min")
    ranked["rank_cost"] = ranked["epoch_s"].rank(method="min")
    return ranked.sort_values("rank_accuracy", kind="stable").reset_index(drop=True)


def _apart(frame: pd.DataFrame, pair: str, data: pd.DataFrame) -> list[str]:
    """Whether each ranked method's lead over the next exceeds the spread of that difference over common seeds."""
    order = data.loc[data["rank_accuracy"].notna(), "method"]
    cells = {line.variant: line.cell for line in accuracy.lines(frame, pair)}
    leads = [stats.paired(cells[one], cells[next_]) for one, next_ in pairwise(order)]
    words = ["n too small" if lead.n < 2 else "within spread" if stats.within_spread(lead) else "yes" for lead in leads]
    return words + [""] * (len(data) - len(words))


def _caption(frame: pd.DataFrame, pair: str) -> str:
    floor = baselines(frame[frame["pair"] == pair]).student
    below = f" What ranks below {floor}, the floor, brought nothing at its weight and this budget." if floor else ""
    return (
        f"Methods by mean {choice.metric(frame).by}, ± sample standard deviation over n seeds; "
        f"what lacks some of them has no rank by {_what(frame)}. "
        "Apart from the next: the lead over the row below is larger than the spread of that difference, paired by "
        "seed; where it is within that spread, the order of the two means nothing. Cost is the seconds of an epoch as "
        f"if the trial had trained alone; trials that ran side by side slow each other.{below} {budget(frame)}"
    )
