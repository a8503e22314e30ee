"""The figure that is compared, by the values of one setting: a curve per method that varies it alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from otkd.core.records import SweepInfo
from otkd.report import choice, inference, stats, style
from otkd.report.choice import Metric
from otkd.report.frame import axes, budget, pairs, students
from otkd.report.grids import Grid, choosing, compared, measures

TITLE = "Ablation, one setting at a time"
ORDER = 20

DECADE = 10
"""A setting whose largest value is so many times its smallest has a logarithmic axis."""


class Panel(NamedTuple):
    """One setting, on one pair, by one measure."""

    axis: str
    pair: str
    metric: Metric
    grids: list[Grid]
    """Those of the methods that vary this setting alone and have a figure."""


class Scale(NamedTuple):
    """Where the values of a setting stand on their axis."""

    kind: Literal["linear", "log", "names"]
    places: dict[str, float]
    """Value as text → place, in the order of the axis."""


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """A panel per setting, pair and measure; None where no method varies one setting alone."""
    found = _panels(frame)
    if not found:
        return None
    drawing, spread = style.panels(len(found), (6.4, 3.7), (4.8, 3.4))
    for place, panel in zip(spread.flat, found, strict=False):
        _draw(place, frame, panel)
    style.legend(drawing, spread)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, n, spread, and what may be chosen by it."""
    return (
        f"{' '.join(metric.sentence for metric in measures(frame))} Lines join means over seeds, small circles are "
        "seeds, bars 95 % intervals of the mean by Student's t (none for one seed; cut off where they leave the "
        f"panel). Methods that vary several settings are not among them. {choosing(frame)} {budget(frame)}"
        f"{choice.first_listed(frame, choice.every(frame))}"
    )


def scale(values: Mapping[str, Any]) -> Scale:
    """Numbers at their places, on a logarithmic axis from one decade on; anything else evenly, in the sweep's order.

    Args:
        values: as a person writes them → as they are.
    """
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values.values()):
        return Scale("names", {text: float(place) for place, text in enumerate(values)})
    ordered = dict(sorted(((text, float(value)) for text, value in values.items()), key=lambda item: item[1]))
    lowest, highest = min(ordered.values()), max(ordered.values())
    return Scale("log" if lowest > 0 and highest >= DECADE * lowest else "linear", ordered)


def _panels(frame: pd.DataFrame) -> list[Panel]:
    alone = [grid for grid in compared(frame) if len(grid.values) == 1]
    found = [
        Panel(axis, pair, metric, [one for one in alone if (one.pair, *one.values) == (pair, axis) and one.has(metric)])
        for axis in axes(frame)
        for pair in pairs(frame)
        for metric in measures(frame)
    ]
    return [panel for panel in found if panel.grids]


def _draw(place: Axes, frame: pd.DataFrame, panel: Panel) -> None:
    found = scale({text: value for grid in panel.grids for text, value in grid.values[panel.axis].items()})
    heights = [height for grid in panel.grids for height in _curve(place, frame, panel, found, grid)]
    heights += _floor(place, frame, panel)
    if heights:
        low, high = min(heights), max(heights)
        room = 0.15 * (high - low) or 50 * 10**-panel.metric.digits
        place.set_ylim(low - room, high + room)
    if found.kind == "log":
        place.set_xscale("log")
    place.set_xticks(list(found.places.values()), [style.tick(text, 18) for text in found.places])
    place.xaxis.set_minor_locator(NullLocator())
    place.margins(x=0.08)
    style.tidy(place, panel.pair, panel.axis, panel.metric.head)
    if found.kind == "names" and sum(map(len, found.places)) > 40:
        place.tick_params(axis="x", labelrotation=25)


def _curve(place: Axes, frame: pd.DataFrame, panel: Panel, found: Scale, grid: Grid) -> list[float]:
    """Draw one method; returns the heights that the panel has to hold."""
    metric, look = panel.metric, style.looks(frame)[grid.trials["variant"].iloc[0]]
    texts = grid.trials[panel.axis]
    cells = {text: stats.cell(grid.trials[texts == text], metric.column) for text in found.places if text in set(texts)}
    shown = {text: cell for text, cell in cells.items() if cell.summary.n}
    x = [found.places[text] for text in shown]
    means = [cell.summary.mean for cell in shown.values()]
    (line,) = place.plot(x, means, color=look.colour, marker=look.marker, markersize=5, label=style.plain(grid.method))
    line.set_linestyle("" if found.kind == "names" else look.line)
    heights: list[float] = []
    for (text, cell), mean in zip(shown.items(), means, strict=True):
        at, by_seed = found.places[text], cell.by_seed.to_numpy(dtype=float)
        low, high = inference.interval(by_seed)
        across = np.full(len(by_seed), at)
        place.scatter(across, by_seed, s=14, facecolors="none", edgecolors=look.colour, linewidths=0.7)
        if not math.isnan(low):
            place.plot([at, at], [low, high], color=look.colour, linewidth=1.2)
        told = style.told(f"{grid.method}, {panel.axis} = {text}", cell.summary, metric.suffix, metric.digits)
        lacks = f"; {cell.lacks}" if cell.lacks else ""
        style.mark(place, at, mean, told + _interval(low, high, metric.digits) + lacks)
        heights += [*by_seed, *([low, high] if len(by_seed) > 2 and not math.isnan(low) else [])]
    return heights


def _interval(low: float, high: float, digits: int) -> str:
    return "" if math.isnan(low) else f", 95 % [{stats.number(low, digits)}, {stats.number(high, digits)}]"


def _floor(place: Axes, frame: pd.DataFrame, panel: Panel) -> list[float]:
    """The baselines as lines, where they have a figure; returns their heights."""
    rows, heights = students(frame), []
    drawn = {name for grid in panel.grids for name in grid.trials["variant"]}
    for role, name in choice.against(frame, panel.pair).items():
        if name in drawn:
            continue
        chosen = rows[(rows["variant"] == name) & (rows["pair"] == panel.pair)]
        found = stats.cell(chosen, panel.metric.column).summary
        if found.n:
            look, line = style.looks(frame)[name], ":" if role == "student" else "--"
            label = style.plain(f"{name} (mean)")
            place.axhline(found.mean, color=look.colour, linestyle=line, linewidth=1.2, label=label)
            heights.append(found.mean)
    return heights
