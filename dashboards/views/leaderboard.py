"""Methods × pairs, as the report has them, with filters and an order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboards import ask, text
from dashboards.source import Sweep
from otkd.report import selection
from otkd.report.choice import METRICS
from otkd.report.frame import variants
from otkd.report.table import Table

SHOWN = {
    "every method": lambda row: True,
    "without a gap": lambda row: not row["not_counted"],
    "with a gap": lambda row: bool(row["not_counted"]),
}
"""Which methods are shown → whether a row of the table's numbers is one."""
COMPARED, SEARCHED = "what is compared", "candidates of the search"
ORDER = "as in the sweep"


def show(sweep: Sweep) -> None:
    """The table of accuracies; of a sweep that searches, what it tried, too."""
    if selection.searched(sweep.frame) and ask.word("Stage", [COMPARED, SEARCHED], "board.stage") == SEARCHED:
        for table in sweep.tables("search"):
            text.head(table.title)
            text.show(table)
        return
    left, right = st.columns(2)
    with left:
        first = sweep.pairs[:1] if sweep.large else []
        pairs = ask.some("Pairs", sweep.pairs, "board.pairs", "all pairs", first)
    there = variants(sweep.on(pairs))
    if not there:
        text.say("No student is on record yet: there is nothing to rank.")
        return
    with right:
        methods = ask.some("Methods", there, "board.methods", "all methods")
    _board(sweep, pairs, methods)


def _board(sweep: Sweep, chosen: list[str], methods: list[str]) -> None:
    figure, order, least, whole = st.columns([3, 3, 1.4, 2])
    with figure:
        metric = METRICS[ask.one("Figure", sweep.measured(chosen), "board.figure", format_func=_words)]
    table = sweep.tables("accuracy", chosen, metric)[0]
    pairs = list(dict.fromkeys(table.data["pair"]))
    with order:
        by = ask.one("Order", [ORDER, *pairs], "board.order", help="By the mean on a pair, the best first.")
    students = table.data[table.data["method"].isin(_names(table))]
    with least:
        n = ask.number("Least n", int(students["n"].max()) if len(students) else 0, "board.n")
    with whole:
        shown = ask.one("Show", list(SHOWN), "board.shown", help="A gap is a trial that is not counted in a mean.")
    keep = [name for name in _names(table) if not methods or name in methods]
    fits = students[(students["n"] >= n) & students.apply(SHOWN[shown], axis=1)]
    keep = [name for name in keep if name in set(fits["method"])]
    made = rows(table, _ordered(table.data, keep, by, metric.sign))
    if keep:
        text.show(made)
        _numbers(table, keep, metric.digits)
    else:
        text.say("No method fits these filters.")


def rows(table: Table, names: Sequence[str]) -> Table:
    """The table with these methods alone, in this order, below its references."""
    places = {name: place for place, name in enumerate(table.frame.index) if place >= table.apart}
    taken = [*range(table.apart), *(places[name] for name in names)]
    bold = frozenset((new, column) for new, old in enumerate(taken) for row, column in table.bold if row == old)
    return dataclasses.replace(table, frame=table.frame.iloc[taken], bold=bold)


def _names(table: Table) -> list[str]:
    return list(table.frame.index[table.apart :])


def _words(column: str) -> str:
    return METRICS[column].head


def _ordered(data: pd.DataFrame, names: list[str], pair: str, sign: int) -> list[str]:
    """By the mean on a pair, the best first, what has none last; as they are where `pair` is none.

    Args:
        sign: 1 where the highest is the best, -1 where the lowest is.
    """
    means = data[data["pair"] == pair].drop_duplicates("method", keep="last").set_index("method")["mean"]
    if means.empty:
        return names
    return sorted(names, key=lambda name: -sign * means[name] if math.isfinite(means[name]) else math.inf)


def _numbers(table: Table, names: list[str], decimals: int) -> None:
    with st.expander("The numbers behind it: a click on a column's name sorts"):
        data = table.data[table.data["method"].isin([*table.frame.index[: table.apart], *names])]
        st.dataframe(data, hide_index=True, width="stretch", column_config=_digits(data, decimals))


def _digits(data: pd.DataFrame, decimals: int) -> dict[str, object]:
    """So many decimals for what is no count."""
    shown = st.column_config.NumberColumn(format=f"%.{decimals}f")
    return {str(name): shown for name in data.select_dtypes("floating")}
