"""Accuracy by two settings that a method varies at once."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from otkd.core.records import SweepInfo
from otkd.report import stats, style
from otkd.report.frame import AXIS, budget, pairs, students
from otkd.report.plots.ablation import measures, scale, setting, varied

TITLE = "Ablation, two settings at once"
ORDER = 21

WRITTEN = 80
"""The most cells whose figures are written into them."""


class Map(NamedTuple):
    """Two settings of one method, on one pair, by one measure."""

    method: str
    pair: str
    rows: str
    """The setting down the side."""
    columns: str
    column: str
    trials: pd.DataFrame


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """A map per method, pair, two settings and measure; None where no method varies two."""
    found = [one for one in _maps(frame) if one.trials[one.column].notna().any()]
    if not found:
        return None
    columns = min(2, len(found))
    tallest = max(one.trials[AXIS + one.rows].map(setting).nunique() for one in found)
    size = (4.8 if columns > 1 else 6.4, 1.6 + 0.45 * min(tallest, 12))
    drawing, panels = style.canvas(math.ceil(len(found) / columns), columns, *size)
    for axes, one in zip(panels.flat, found, strict=False):
        _draw(drawing, axes, frame, one)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, n, spread, and what the means go over."""
    averaged = {
        other
        for _, group in students(frame).groupby("method", sort=False)
        if len(settings := varied(group)) > 2
        for other in settings
    }
    over = (
        " Where a method varies more than two settings, a cell is the mean over the others too: its n and ± count "
        "every such setting and seed."
        if averaged
        else ""
    )
    return (
        "Cells are means ± sample standard deviation over seeds; n is named where a cell has fewer trials than others. "
        f"Each map has a colour scale of its own.{over} {budget(frame)}"
    )


def _maps(frame: pd.DataFrame) -> list[Map]:
    return [
        Map(str(method), pair, first, second, column, chosen)
        for method, group in students(frame).groupby("method", sort=False)
        for pair in pairs(frame)
        if len(chosen := group[group["pair"] == pair])
        for first, second in combinations(varied(group), 2)
        for column in measures(frame)
    ]


def _draw(drawing: Figure, axes: Axes, frame: pd.DataFrame, one: Map) -> None:
    sides = [list(scale(one.trials[AXIS + axis]).places) for axis in (one.rows, one.columns)]
    texts = [one.trials[AXIS + axis].map(setting) for axis in (one.rows, one.columns)]
    cells = {
        (row, column): stats.cell(one.trials[(texts[0] == down) & (texts[1] == across)], one.column)
        for row, down in enumerate(sides[0])
        for column, across in enumerate(sides[1])
    }
    means = np.full((len(sides[0]), len(sides[1])), math.nan)
    for place, cell in cells.items():
        means[place] = cell.summary.mean
    image = axes.imshow(means, cmap="viridis", interpolation="nearest", aspect="auto")
    axes.set_facecolor("#EEEEEE")
    drawing.colorbar(image, ax=axes).ax.tick_params(labelsize=8)
    most = max(cell.summary.n for cell in cells.values())
    for (row, column), cell in cells.items():
        name = f"{one.method}, {one.rows} = {sides[0][row]}, {one.columns} = {sides[1][column]}"
        lacks = f"; {cell.lacks}" if cell.lacks else ""
        style.mark(axes, column, row, style.told(name, cell.summary, " %" if cell.summary.n else "") + lacks)
        if len(cells) <= WRITTEN:
            _write(axes, row, column, cell, most, _level(means, row, column))
    axes.set_yticks(range(len(sides[0])), [style.tick(text, 24) for text in sides[0]])
    axes.set_xticks(range(len(sides[1])), [style.tick(text, 18) for text in sides[1]])
    style.tidy(axes, f"{one.method}, {one.pair}\n{measures(frame)[one.column]}", one.columns, one.rows)
    axes.grid(False)


def _level(means: NDArray[np.float64], row: int, column: int) -> float:
    """Where a cell's colour stands on the scale, from 0 to 1; NaN for a cell without a figure."""
    low, high = np.nanmin(means), np.nanmax(means)
    return float((means[row, column] - low) / ((high - low) or 1))


def _write(axes: Axes, row: int, column: int, cell: stats.Cell, most: int, level: float) -> None:
    """A cell's figure, in black or white, whichever can be read on its colour."""
    mean, std, n = cell.summary
    lines = [stats.number(mean)] + [f"± {stats.number(std)}"] * (n > 1) + [f"n = {n}"] * (0 < n < most)
    colour = "black" if math.isnan(level) or level > 0.55 else "white"
    axes.text(column, row, "\n".join(lines), ha="center", va="center", fontsize=7.5, color=colour, linespacing=1.1)
