"""Accuracy by the values of one setting, a curve per method that varies it alone."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import inference, stats, style
from otkd.report.frame import AXIS, axes, baselines, budget, pairs, show, students

TITLE = "Ablation, one setting at a time"
ORDER = 20

DECADE = 10
"""A setting whose largest value is so many times its smallest has a logarithmic axis."""


class Panel(NamedTuple):
    """One setting, on one pair, by one measure."""

    axis: str
    pair: str
    column: str
    rows: pd.DataFrame
    """Trials of the methods that vary this setting alone."""


class Scale(NamedTuple):
    """Where the values of a setting stand on their axis."""

    kind: Literal["linear", "log", "names"]
    places: dict[str, float]
    """Value as text → place, in the order of the axis."""


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """A panel per setting, pair and measure; None where no method varies one setting alone."""
    found = [panel for panel in _panels(frame) if panel.rows[panel.column].notna().any()]
    if not found:
        return None
    columns = min(2, len(found))
    size = (4.8, 3.4) if columns > 1 else (6.4, 3.7)
    drawing, spread = style.canvas(math.ceil(len(found) / columns), columns, *size)
    for place, panel in zip(spread.flat, found, strict=False):
        _draw(place, frame, panel)
    for place in spread.flat[len(found) :]:
        place.set_visible(False)
    style.legend(drawing, spread)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, n, spread, and what may be chosen by it."""
    choose = (
        "Choose a setting by the panels of val; those of test are for reading."
        if names.BEST_VAL_TOP1 in measures(frame)
        else "Nothing was held out: to choose a setting by these test figures would be to tune on the test set."
    )
    return (
        "Lines join means over seeds, small circles are seeds, bars 95 % intervals of the mean by Student's t (none "
        "for one seed; cut off where they leave the panel). Methods that vary several settings are not among them. "
        f"{choose} {budget(frame)}"
    )


def measures(frame: pd.DataFrame) -> dict[str, str]:
    """Column → its selection rule; validation first, since it is what a setting may be chosen by."""
    val = {names.BEST_VAL_TOP1: "val top-1 %, best epoch"} if students(frame)[names.BEST_VAL_TOP1].notna().any() else {}
    return val | {names.test("last", names.TEST_TOP1): "test top-1 %, last epoch"}


def varied(rows: pd.DataFrame) -> list[str]:
    """The settings, by dotted path, that have several values among these trials."""
    return [axis for axis in axes(rows) if rows[AXIS + axis].map(setting).replace("", pd.NA).nunique() > 1]


def setting(value: object) -> str:
    """A value as text; empty where a method has not this setting."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else show(value)


def scale(values: pd.Series) -> Scale:
    """Numbers at their places, on a logarithmic axis from one decade on; anything else evenly, in the sweep's order."""
    found: dict[str, Any] = {setting(value): value for value in values if setting(value)}
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in found.values()):
        return Scale("names", {text: float(place) for place, text in enumerate(found)})
    ordered = dict(sorted(((text, float(value)) for text, value in found.items()), key=lambda item: item[1]))
    lowest, highest = min(ordered.values()), max(ordered.values())
    return Scale("log" if lowest > 0 and highest >= DECADE * lowest else "linear", ordered)


def _panels(frame: pd.DataFrame) -> list[Panel]:
    rows = students(frame)
    alone = {method: varied(group) for method, group in rows.groupby("method", sort=False)}
    return [
        Panel(axis, pair, column, chosen)
        for axis in axes(frame)
        for pair in pairs(frame)
        for column in measures(frame)
        if len(chosen := rows[(rows["pair"] == pair) & rows["method"].isin(_only(alone, axis))])
    ]


def _only(alone: dict[Any, list[str]], axis: str) -> list[Any]:
    return [method for method, settings in alone.items() if settings == [axis]]


def _draw(place: Axes, frame: pd.DataFrame, panel: Panel) -> None:
    found = scale(panel.rows[AXIS + panel.axis])
    heights: list[float] = []
    for method, group in panel.rows.groupby("method", sort=False):
        heights += _curve(place, frame, panel, found, str(method), group)
    heights += _floor(place, frame, panel)
    if heights:
        low, high = min(heights), max(heights)
        room = 0.15 * (high - low) or 0.5
        place.set_ylim(low - room, high + room)
    if found.kind == "log":
        place.set_xscale("log")
    place.set_xticks(list(found.places.values()), [style.tick(text, 18) for text in found.places])
    place.xaxis.set_minor_locator(NullLocator())
    place.margins(x=0.08)
    style.tidy(place, panel.pair, panel.axis, measures(frame)[panel.column])
    if found.kind == "names" and sum(map(len, found.places)) > 40:
        place.tick_params(axis="x", labelrotation=25)


def _curve(
    place: Axes, frame: pd.DataFrame, panel: Panel, found: Scale, method: str, group: pd.DataFrame
) -> list[float]:
    """Draw one method; returns the heights that the panel has to hold."""
    look = style.looks(frame)[group["variant"].iloc[0]]
    texts = group[AXIS + panel.axis].map(setting)
    cells = {text: stats.cell(group[texts == text], panel.column) for text in found.places if (texts == text).any()}
    shown = {text: cell for text, cell in cells.items() if cell.summary.n}
    x = [found.places[text] for text in shown]
    means = [cell.summary.mean for cell in shown.values()]
    (line,) = place.plot(x, means, color=look.colour, marker=look.marker, markersize=5, label=style.plain(method))
    line.set_linestyle("" if found.kind == "names" else look.line)
    heights: list[float] = []
    for (text, cell), mean in zip(shown.items(), means, strict=True):
        at, by_seed = found.places[text], cell.by_seed.to_numpy(dtype=float)
        low, high = inference.interval(by_seed)
        across = np.full(len(by_seed), at)
        place.scatter(across, by_seed, s=14, facecolors="none", edgecolors=look.colour, linewidths=0.7)
        if not math.isnan(low):
            place.plot([at, at], [low, high], color=look.colour, linewidth=1.2)
        name = f"{method}, {panel.axis} = {text}"
        lacks = f"; {cell.lacks}" if cell.lacks else ""
        style.mark(place, at, mean, style.told(name, cell.summary, " %") + _interval(low, high) + lacks)
        heights += [*by_seed, *([low, high] if len(by_seed) > 2 and not math.isnan(low) else [])]
    return heights


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f", 95 % [{stats.number(low)}, {stats.number(high)}]"


def _floor(place: Axes, frame: pd.DataFrame, panel: Panel) -> list[float]:
    """The baselines as lines, where they have a figure; returns their heights."""
    rows, heights = students(frame), []
    for name, line in zip(baselines(frame), (":", "--"), strict=True):
        if name is None or name in set(panel.rows["variant"]):
            continue
        found = stats.cell(rows[(rows["variant"] == name) & (rows["pair"] == panel.pair)], panel.column).summary
        if found.n:
            label = style.plain(f"{name} (mean)")
            place.axhline(found.mean, color=style.looks(frame)[name].colour, linestyle=line, linewidth=1.2, label=label)
            heights.append(found.mean)
    return heights
