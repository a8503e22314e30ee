"""The figure that is compared, against cost: what a method gives for its seconds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otkd.core.records import SweepInfo
from otkd.report import choice, stats, style
from otkd.report.frame import budget, pairs
from otkd.report.stats import Summary
from otkd.report.tables.accuracy import lines
from otkd.report.tables.cost import costs

TITLE = "Results against cost"
ORDER = 30


class Point(NamedTuple):
    """One method on one pair."""

    seconds: Summary
    """Per epoch."""
    figure: Summary
    """What is compared."""


class Front(NamedTuple):
    """The methods of a pair that no other beats in both."""

    members: list[str]
    """Cheapest first: for none is another at least as good by its mean in at most its mean time, and better in one."""
    left_out: list[str]
    """Methods with fewer seeds than others, which do not compete: those left may be the lucky ones."""


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """One panel per pair; None where no finished trial has both a figure and a time."""
    found = {pair: _points(frame, pair) for pair in pairs(frame)}
    if not any(found.values()):
        return None
    drawing, panels = style.panels(len(found), (6.4, 3.7), (4.8, 3.7))
    for axes, (pair, points) in zip(panels.flat, found.items(), strict=False):
        _panel(axes, frame, pair, points)
    style.legend(drawing, panels)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, spread, what a second is, and who is on the Pareto front."""
    return (
        f"{choice.metric(frame).sentence} Mean ± sample standard deviation over seeds, against seconds per "
        "epoch as if the trial had trained alone: the teacher's forward passes included, the median over epochs "
        "without the first, in which code is loaded and compiled (a trial of one epoch has that one). "
        f"{_better(frame)} is better. {_fronts(frame)}{budget(frame)}"
    )


def _better(frame: pd.DataFrame) -> str:
    return "Down and to the left" if choice.metric(frame).lower else "Up and to the left"


def front(points: dict[str, Point], sign: int = 1) -> Front:
    """The Pareto front of a figure against time, by means.

    Args:
        sign: -1 where lower figures are better.
    """
    most = max((point.figure.n for point in points.values()), default=0)
    able = {name: point for name, point in points.items() if point.figure.n == most}
    members = [name for name, one in able.items() if not any(_beats(other, one, sign) for other in able.values())]
    ordered = sorted(members, key=lambda name: able[name].seconds.mean)
    return Front(ordered, [name for name in points if name not in able])


def _beats(left: Point, right: Point, sign: int) -> bool:
    gain, saved = sign * (left.figure.mean - right.figure.mean), right.seconds.mean - left.seconds.mean
    return gain >= 0 and saved >= 0 and (gain > 0 or saved > 0)


def _fronts(frame: pd.DataFrame) -> str:
    metric = choice.metric(frame)
    drawn = {pair: _points(frame, pair) for pair in pairs(frame)}
    found = {pair: front(points, metric.sign) for pair, points in drawn.items() if len(points) > 1}
    if not found:
        return ""
    told = "; ".join(
        f"{pair}: {', '.join(one.members)}"
        + (f" (not considered, having fewer seeds: {', '.join(one.left_out)})" if one.left_out else "")
        for pair, one in found.items()
    )
    return (
        "Filled markers on the dashed line are the Pareto front: no other method is at least as good by its mean in "
        f"at most their mean time. It goes by means; where bars overlap, chance may decide who is on it. On it: "
        f"{told}. "
    )


def _points(frame: pd.DataFrame, pair: str) -> dict[str, Point]:
    found = costs(frame, pair)
    points = {line.variant: Point(found[line.variant].summary, line.cell.summary) for line in lines(frame, pair)}
    return {name: point for name, point in points.items() if point.seconds.n and point.figure.n}


def _panel(axes: Axes, frame: pd.DataFrame, pair: str, points: dict[str, Point]) -> None:
    looks, metric = style.looks(frame), choice.metric(frame)
    members = front(points, metric.sign).members
    for name, (x, y) in points.items():
        look = looks[name]
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=np.nan_to_num(x.std),
            yerr=np.nan_to_num(y.std),
            color=look.colour,
            marker=look.marker,
            markerfacecolor=look.colour if name in members else "white",
            markersize=7,
            capsize=3,
            elinewidth=1,
            linestyle="",
            label=style.plain(name),
        )
        seconds = f"{stats.show(x)} s per epoch, n = {x.n}"
        on_it = "; on the Pareto front" if name in members and len(points) > 1 else ""
        told = style.told(name, y, metric.suffix, metric.digits)
        style.mark(axes, x.mean, y.mean, f"{told}; {seconds}{on_it}")
    if len(points) > 1:
        _line(axes, [points[name] for name in members])
    style.tidy(axes, pair, "seconds per epoch", metric.head)
    axes.margins(0.12)
    axes.set_xlim(left=0)


def _line(axes: Axes, members: list[Point]) -> None:
    """What a time buys: a step at each member."""
    x, y = [point.seconds.mean for point in members], [point.figure.mean for point in members]
    axes.step(x, y, where="post", color=style.FLOOR, linestyle="--", linewidth=1, zorder=1, label="Pareto front")
