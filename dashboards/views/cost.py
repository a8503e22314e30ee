"""Accuracy against cost, and what training costs."""

from __future__ import annotations

import pandas as pd

from dashboards import ask, charts, text
from dashboards.source import Sweep
from otkd.report import choice
from otkd.report.frame import variants


def show(sweep: Sweep) -> None:
    """A chart for one pair, the report's table for it."""
    if not sweep.pairs:
        text.say("No student is on record yet.")
        return
    pair = ask.one("Pair", sweep.pairs, "cost.pair")
    tables = sweep.tables("cost", [pair])
    if not tables:
        text.say("No student's time is on record yet.")
        return
    data = against(sweep, pair)
    if len(data):
        charts.points(data, "seconds per epoch", choice.DEFAULT.head, sweep.colours, "cost.chart")
        text.small(
            "Test top-1 with the last epoch's weights against seconds per epoch as if the trial had trained alone; "
            "means, bars ± sample standard deviation over seeds. Up and to the left is better. The vertical axis does "
            "not begin at 0."
        )
    for table in tables:
        text.show(table)


def against(sweep: Sweep, pair: str) -> pd.DataFrame:
    """A row per method that has both figures on `pair`, from the report's tables of accuracy and of cost."""
    accuracy = sweep.tables("accuracy", [pair])[0].data
    accuracy = accuracy[(accuracy["metric"] == choice.DEFAULT.column) & (accuracy["n"] > 0)]
    accuracy = accuracy[accuracy["method"].isin(variants(sweep.on([pair])))].drop_duplicates("method", keep="last")
    seconds = sweep.tables("cost", [pair])[0].data
    both = accuracy.merge(seconds[seconds["epoch_s_n"] > 0], on=["pair", "method"])
    names = {"method": "name", "mean": "y_mean", "std": "y_std", "epoch_s_mean": "x_mean", "epoch_s_std": "x_std"}
    return both.rename(columns=names)[["name", "x_mean", "x_std", "y_mean", "y_std", "n"]]
