"""What a setting does: the report's table of an axis, and its curve."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboards import ask, charts, text
from dashboards.source import Sweep
from otkd.report.choice import METRICS
from otkd.report.table import Table

NEEDED = {"pair", "method", "value", "metric", "mean", "std", "n"}
"""Columns of the table's numbers that the curve is drawn from."""


def show(sweep: Sweep) -> None:
    """Choose an axis."""
    titles = {table.title: table for table in sweep.tables("ablation")}
    if not titles:
        text.say("This sweep has no axis of several values. A list under `grid:` in a method makes one.", code=True)
        return
    table = titles[ask.one("Axis", list(titles), "ablation.axis")]
    if set(table.data) >= NEEDED:
        _curve(table)
    text.show(table)


def _curve(table: Table) -> None:
    axis = str(table.frame.index.name)
    pair_place, metric_place = st.columns(2)
    with pair_place:
        pair = ask.one("Pair", list(dict.fromkeys(table.data["pair"])), "ablation.pair")
    metrics = list(dict.fromkeys(table.data["metric"]))
    with metric_place:
        metric = ask.one("Figure", metrics, "ablation.metric", format_func=_words)
    data = table.data[(table.data["pair"] == pair) & (table.data["metric"] == metric) & (table.data["n"] > 0)]
    if data.empty:
        text.say("No trial of this axis has finished on this pair.")
        return
    data = data.rename(columns={"method": "name"}).assign(value=data["value"].astype(str))
    data = data.iloc[_order(data["value"])]
    charts.settings(data[["name", "value", "mean", "std", "n"]], axis, _words(metric), "ablation.chart")
    text.small("Mean, bar ± sample standard deviation over n (see the table). The vertical axis does not begin at 0.")


def _words(metric: str) -> str:
    """A column of the table's numbers with its selection rule."""
    return METRICS[metric].head if metric in METRICS else metric


def _order(values: pd.Series) -> list[int]:
    """Numbers by size; words as the sweep has them. Positions."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        return list(range(len(values)))
    return [int(place) for place in numbers.to_numpy().argsort(kind="stable")]
