"""Learning curves: accuracy and training loss by epoch, mean and band over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import style
from otkd.report.frame import has_val, pairs, students, variants
from otkd.report.stats import Summary

TITLE = "Learning curves"
ORDER = 20

WORDS = {names.VAL_TOP1: "val top-1 %", names.TRAIN_TOP1: "train top-1 %", names.TRAIN_LOSS: "train loss"}
MARKED = 4
"""Points of a curve that the page names."""


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """A row per pair, a column per metric; None where no epoch is on record."""
    curves = _curves(frame, epochs)
    metrics = [metric for metric in WORDS if metric in set(curves["metric"])]
    if not metrics:
        return None
    drawing, panels = style.canvas(len(pairs(frame)), len(metrics), 4.6, 3.3)
    for row, pair in enumerate(pairs(frame)):
        for column, metric in enumerate(metrics):
            chosen = curves[(curves["pair"] == pair) & (curves["metric"] == metric)]
            _panel(panels[row, column], frame, chosen, pair, WORDS[metric])
    style.legend(drawing, panels)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """What is drawn and over which trials."""
    accuracy = (
        "Accuracy is measured on held-out validation images after each epoch."
        if has_val(frame)
        else "Nothing was held out: accuracy is that on augmented training images, so it says how a method learns only."
    )
    return (
        f"{accuracy} Lines are means over the trials that reached an epoch (diverged and running ones too), bands ± "
        "sample standard deviation over seeds. Training losses are sums of different terms: compare their shapes, "
        "not their heights."
    )


def _curves(frame: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread per pair, variant, metric and epoch."""
    rows = students(frame)[["key", "pair", "variant"]].astype({"pair": "category", "variant": "category"})
    long = epochs[epochs["metric"].isin(WORDS) & np.isfinite(epochs["value"])].merge(rows, on="key")
    grouped = long.groupby(["pair", "variant", "metric", "epoch"], sort=False, observed=True)["value"]
    return grouped.agg(["mean", "std", "count"]).reset_index()


def _panel(axes: Axes, frame: pd.DataFrame, curves: pd.DataFrame, pair: str, words: str) -> None:
    looks, own = style.looks(frame), dict(tuple(curves.groupby("variant", observed=True)))
    for name in (name for name in variants(frame) if name in own):
        line, look = own[name].sort_values("epoch"), looks[name]
        epoch, mean, std = (line[column].to_numpy() for column in ("epoch", "mean", "std"))
        axes.plot(
            epoch,
            mean,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker if len(line) <= 12 else "",
            markersize=3.5,
            linewidth=1.5,
            label=style.plain(name),
        )
        spread = np.nan_to_num(std)
        axes.fill_between(epoch, mean - spread, mean + spread, color=look.colour, alpha=0.15, linewidth=0)
        _mark(axes, name, line, words)
    style.tidy(axes, pair, "epoch", words)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark(axes: Axes, name: str, line: pd.DataFrame, words: str) -> None:
    """Name the last point of a curve, and some before it."""
    unit = " %" if words.endswith("%") else ""
    places = sorted(set(np.linspace(len(line) - 1, 0, MARKED, endpoint=False).astype(int)))
    for epoch, mean, std, count in line[["epoch", "mean", "std", "count"]].iloc[places].itertuples(index=False):
        told = style.told(f"{name}, epoch {epoch:.0f}", Summary(mean, std, int(count)), unit)
        style.mark(axes, epoch, mean, f"{told} ({words.removesuffix(' %')})")
