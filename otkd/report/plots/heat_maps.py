"""The figure that is compared, by two settings that a method varies at once."""

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
from otkd.report.choice import Metric
from otkd.report.frame import budget
from otkd.report.grids import Grid, choosing, compared, measures
from otkd.report.plots.ablation import scale

TITLE = "Heat maps of settings"
ORDER = 21

MOST = 12
"""Maps that are drawn at most."""
WRITTEN = 80
"""The most cells whose figures are written into them."""


class Map(NamedTuple):
    """Two settings of one method, on one pair, by one measure."""

    grid: Grid
    rows: str
    """The setting down the side."""
    columns: str
    metric: Metric


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """A map per method, pair, two settings and measure, the first MOST; None where no method varies two."""
    found = _maps(frame)[:MOST]
    if not found:
        return None
    height = 1.6 + 0.45 * min(max(len(one.grid.values[one.rows]) for one in found), 12)
    drawing, panels = style.panels(len(found), (6.4, height), (4.8, height))
    for axes, one in zip(panels.flat, found, strict=False):
        _draw(drawing, axes, one)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, n, spread, and what the means go over."""
    over = (
        " Where a method varies more than two settings, a cell is the mean over the others too: its n and ± count "
        "every such setting and seed."
        if any(len(grid.values) > 2 for grid in compared(frame))
        else ""
    )
    count = len(_maps(frame))
    left_out = (
        f" The first {MOST} of {count} maps are drawn; trials.csv has every trial with its settings."
        if count > MOST
        else ""
    )
    return (
        f"{' '.join(metric.sentence for metric in measures(frame))} Cells are means ± sample standard deviation over "
        "seeds; n is named where a cell has fewer trials than others. Each map has a colour scale of its own."
        f"{over}{left_out} {choosing(frame)} {budget(frame)}"
    )


def _maps(frame: pd.DataFrame) -> list[Map]:
    return [
        Map(grid, first, second, metric)
        for grid in compared(frame)
        for first, second in combinations(grid.values, 2)
        for metric in grid.measures
        if grid.has(metric)
    ]


def _draw(drawing: Figure, axes: Axes, one: Map) -> None:
    grid, metric = one.grid, one.metric
    down, across = (list(scale(grid.values[axis]).places) for axis in (one.rows, one.columns))
    found = grid.cells(one.rows, one.columns, metric)
    cells = {(row, column): found[left, top] for row, left in enumerate(down) for column, top in enumerate(across)}
    means = np.reshape([cell.summary.mean for cell in cells.values()], (len(down), len(across)))
    image = axes.imshow(means, cmap="viridis", interpolation="nearest", aspect="auto")
    axes.set_facecolor("#EEEEEE")
    drawing.colorbar(image, ax=axes).ax.tick_params(labelsize=8)
    most = max(cell.summary.n for cell in cells.values())
    for (row, column), cell in cells.items():
        name = f"{grid.method}, {one.rows} = {down[row]}, {one.columns} = {across[column]}"
        lacks = f"; {cell.lacks}" if cell.lacks else ""
        unit = metric.suffix if cell.summary.n else ""
        style.mark(axes, column, row, style.told(name, cell.summary, unit, metric.digits) + lacks)
        if len(cells) <= WRITTEN:
            _write(axes, (row, column), cell, most, _level(means, row, column), metric.digits)
    axes.set_yticks(range(len(down)), [style.tick(text, 24) for text in down])
    axes.set_xticks(range(len(across)), [style.tick(text, 18) for text in across])
    style.tidy(axes, f"{grid.method}, {grid.pair}\n{metric.head}", one.columns, one.rows)
    axes.grid(False)


def _level(means: NDArray[np.float64], row: int, column: int) -> float:
    """Where a cell's colour stands on the scale, from 0 to 1; NaN for a cell without a figure."""
    low, high = np.nanmin(means), np.nanmax(means)
    return float((means[row, column] - low) / ((high - low) or 1))


def _write(axes: Axes, place: tuple[int, int], cell: stats.Cell, most: int, level: float, digits: int) -> None:
    """A cell's figure, in black or white, whichever can be read on its colour."""
    mean, std, n = cell.summary
    lines = [stats.number(mean, digits)] + [f"± {stats.number(std, digits)}"] * (n > 1) + [f"n = {n}"] * (0 < n < most)
    colour = "black" if math.isnan(level) or level > 0.55 else "white"
    row, column = place
    axes.text(column, row, "\n".join(lines), ha="center", va="center", fontsize=7.5, color=colour, linespacing=1.1)
