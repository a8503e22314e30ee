"""Accuracy against cost: what a method gives for its seconds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otkd.core.records import SweepInfo
from otkd.report import style
from otkd.report.frame import budget, pairs
from otkd.report.stats import Summary
from otkd.report.tables.accuracy import lines
from otkd.report.tables.cost import cost

TITLE = "Accuracy against cost"
ORDER = 30


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """One panel per pair; None where no finished trial has both an accuracy and a time."""
    found = {pair: _points(frame, pair) for pair in pairs(frame)}
    if not any(found.values()):
        return None
    columns = min(2, len(found))
    drawing, panels = style.canvas(math.ceil(len(found) / columns), columns, 4.8 if columns > 1 else 6.4, 3.7)
    for axes, (pair, points) in zip(panels.flat, found.items(), strict=False):
        _panel(axes, frame, pair, points)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    style.legend(drawing, panels)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, spread and what a second is."""
    return (
        "Test top-1 with the last epoch's weights, mean ± sample standard deviation over seeds, against seconds per "
        "epoch as if the trial had trained alone (teacher's forward passes included). Up and to the left is better. "
        f"{budget(frame)}"
    )


def _points(frame: pd.DataFrame, pair: str) -> dict[str, tuple[Summary, Summary]]:
    points = {line.variant: (cost(frame, line.variant, pair).summary, line.cell.summary) for line in lines(frame, pair)}
    return {name: (x, y) for name, (x, y) in points.items() if x.n and y.n}


def _panel(axes: Axes, frame: pd.DataFrame, pair: str, points: dict[str, tuple[Summary, Summary]]) -> None:
    looks = style.looks(frame)
    for name, (x, y) in points.items():
        look = looks[name]
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=np.nan_to_num(x.std),
            yerr=np.nan_to_num(y.std),
            color=look.colour,
            marker=look.marker,
            markersize=7,
            capsize=3,
            elinewidth=1,
            linestyle="",
            label=style.plain(name),
        )
    style.tidy(axes, pair, "seconds per epoch", "test top-1 %, last epoch")
    axes.margins(0.12)
    axes.set_xlim(left=0)
