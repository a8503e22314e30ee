"""Differences to the baselines, with their intervals."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otkd.core.records import SweepInfo
from otkd.report import choice, style
from otkd.report.choice import Metric
from otkd.report.frame import budget, pairs, seeds
from otkd.report.stats import number
from otkd.report.tables.differences import Line, compared

TITLE = "Differences, paired by seed"
ORDER = 12


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """A row of panels per pair, one per baseline; None with one seed or nothing to compare."""
    if seeds(frame) < 2:
        return None
    found = {pair: {base: group for base, group in compared(frame, pair).items() if group} for pair in pairs(frame)}
    found = {pair: groups for pair, groups in found.items() if groups}
    if not found:
        return None
    most = max(len(groups) for groups in found.values())
    tallest = max(len(group) for groups in found.values() for group in groups.values())
    wider = style.beside(
        style.tick(line.variant) for groups in found.values() for group in groups.values() for line in group
    )
    width = 8.6 / most + wider if most > 1 else 7.4
    drawing, panels = style.canvas(len(found), most, width, 1.3 + 0.34 * tallest)
    for row, (pair, groups) in zip(panels, found.items(), strict=True):
        for axes, (base, group) in zip(row, groups.items(), strict=False):
            _panel(axes, frame, pair, base, group)
        for axes in row[len(groups) :]:
            axes.set_visible(False)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """What is drawn, and what the bars are."""
    return (
        f"{choice.metric(frame).sentence} Differences over the seeds that both methods finished: circles are seeds, "
        "the bar is the mean with its 95 % interval by Student's t. A bar that crosses 0 is a difference that chance "
        f"may explain. {budget(frame)}{choice.first_listed(frame, choice.every(frame))}"
    )


def _panel(axes: Axes, frame: pd.DataFrame, pair: str, base: str, group: list[Line]) -> None:
    looks, metric = style.looks(frame), choice.metric(frame)
    axes.axvline(0, color=style.FLOOR, linestyle=":", linewidth=1.2, zorder=1)
    for height, line in enumerate(group):
        colour = looks[line.variant].colour
        deltas = line.found.by_seed.to_numpy()
        axes.scatter(deltas, [height] * len(deltas), s=22, facecolors="none", edgecolors=colour, linewidths=1.0)
        axes.plot(line.found.summary.mean, height, "|", color=colour, markersize=13, markeredgewidth=1.8, zorder=4)
        low, high = line.found.interval
        if not math.isnan(low):
            axes.plot([low, high], [height, height], "-", color=colour, linewidth=1.8, zorder=3)
        style.mark(axes, line.found.summary.mean, height, _words(line, base, metric))
    axes.set_yticks(range(len(group)), [style.tick(line.variant) for line in group])
    axes.set_ylim(len(group) - 0.4, -0.6)
    label = f"difference of {metric.name}" + (f",{metric.points}" if metric.points else "")
    style.tidy(axes, f"{pair}\nto {base}", label, "")
    axes.grid(False, axis="y")


def _words(line: Line, base: str, metric: Metric) -> str:
    found, digits = line.found, metric.digits
    low, high = (number(bound, digits, sign=True) for bound in found.interval)
    interval = "" if math.isnan(found.interval.low) else f", 95 % [{low}, {high}]"
    told = style.told(f"{line.variant} less {base}", found.summary, metric.points, digits, sign=True)
    return f"{told}{interval}, {style.each(found.by_seed, digits, sign=True)}"
