"""How figures look: one colour-blind-safe colour per method, the same in every figure of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from otkd.report.frame import baselines, variants
from otkd.report.stats import Summary, number, show

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B3A100")
"""Okabe & Ito's palette without black (the teacher's), its yellow darkened to be seen on white."""
FLOOR, TEACHER = "#6B6B6B", "#000000"
TITLE, LETTER = 10, 0.55
"""Points of a panel's title, and the share of these that a letter is wide."""
ROW, ENTRY = 0.19, 60
"""Inches that a legend's row is high, and the most letters of an entry."""
MARKERS, LINES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", "-.", ":")
DPI = 150


class Look(NamedTuple):
    colour: str
    marker: str
    line: str


class Spot(NamedTuple):
    """A named point of a figure that has been drawn."""

    left: float
    """Share of the figure's width, from its left edge."""
    top: float
    """Share of its height, from its upper edge."""
    text: str


def looks(frame: pd.DataFrame) -> dict[str, Look]:
    """Colour, marker and line of every method; the student baseline is grey."""
    floor = baselines(frame).student
    others = [name for name in variants(frame) if name != floor]
    found = {name: _look(index) for index, name in enumerate(others)}
    return found if floor is None else {floor: Look(FLOOR, "o", "-"), **found}


def canvas(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure that no global state knows, and its axes as a 2-d array; width and height are one axes' in inches."""
    figure = Figure(figsize=(columns * width, rows * height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def panels(count: int, *sizes: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure of `count` panels, and its axes as a 2-d array; those that are left over are hidden.

    Args:
        sizes: width and height of one panel in inches where there is one column, two, …: as many columns at most.
    """
    columns = min(len(sizes), count)
    figure, spread = canvas(math.ceil(count / columns), columns, *sizes[columns - 1])
    for axes in spread.flat[count:]:
        axes.set_visible(False)
    return figure, spread


def beside(labels: Iterable[str]) -> float:
    """The inches that labels down the side take beyond what a panel has for them."""
    return 0.06 * max(0, max((len(line) for label in labels for line in label.split("\n")), default=0) - 12)


def tidy(axes: Axes, title: str, x: str, y: str, points: float = TITLE) -> None:
    """Title, broken where the panel ends, labels and a quiet frame."""
    axes.set_title(plain(_broken(axes, title, points)), fontsize=points, loc="left")
    axes.set_xlabel(plain(x), fontsize=9)
    axes.set_ylabel(plain(y), fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, panels: np.ndarray) -> None:
    """One legend under all panels, in as many columns as fit; the figure grows with its rows."""
    found: dict[str, Any] = {}
    for axes in panels.flat:
        found |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label if len(label) <= ENTRY else label[: ENTRY - 1].rstrip("\\") + "…" for label in found]
    inches = 0.6 + 0.075 * max(map(len, labels), default=1)
    columns = max(1, min(len(found), int(figure.get_figwidth() / inches)))
    place = {"loc": "outside lower center", "ncols": columns}
    figure.set_figheight(figure.get_figheight() + ROW * (math.ceil(len(found) / columns) - 1))
    figure.legend(list(found.values()), labels, fontsize=8.5, frameon=False, **place)


def plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def tick(text: str, most: int = 40) -> str:
    """A label of an axis on at most two lines, the second for a method's settings; too long a line is cut."""
    lines = text.replace(" (", "\n(", 1).split("\n") if len(text) > 16 else [text]
    return plain("\n".join(line if len(line) <= most else line[: most - 1] + "…" for line in lines))


def mark(axes: Axes, x: float, y: float, text: str) -> None:
    """Name a point, given in data coordinates: the page shows the text where a reader points at it."""
    vars(axes.get_figure()).setdefault("otkd_marks", []).append((axes, x, y, text))


def spots(figure: Figure) -> tuple[Spot, ...]:
    """The marks of a figure as it was drawn last, in their order; those outside of the figure are left out."""
    shares = figure.transFigure.inverted()
    found = []
    for axes, x, y, text in vars(figure).get("otkd_marks", []):
        left, bottom = shares.transform(axes.transData.transform((x, y)))
        if 0 <= left <= 1 and 0 <= bottom <= 1:
            found.append(Spot(float(left), float(1 - bottom), text))
    return tuple(found)


def told(name: str, summary: Summary, unit: str, digits: int = 2, sign: bool = False) -> str:
    """`kd: 74.50 ± 0.30 %, n = 3`: what a mark says of a mean."""
    return f"{name}: {show(summary, digits, sign)}{unit}, n = {summary.n}"


def each(by_seed: pd.Series, digits: int = 2, sign: bool = False) -> str:
    """`by seed 0: 74.81, 1: 74.23`: the figures behind a mean, at most ten of them."""
    shown = [f"{seed}: {number(value, digits, sign)}" for seed, value in by_seed.iloc[:10].items()]
    return "by seed " + ", ".join(shown) + (", …" if len(by_seed) > 10 else "")


def _broken(axes: Axes, text: str, points: float) -> str:
    """Text in lines that are no wider than a panel of the figure."""
    grid = axes.get_subplotspec()
    columns = grid.get_gridspec().ncols if grid is not None else 1
    inches = axes.figure.bbox.width / axes.figure.dpi / columns
    most = int(72 * inches / (LETTER * points)) - 6
    return "\n".join(part for line in text.split("\n") for part in wrap(line, most))


def _look(index: int) -> Look:
    turn = index // len(OKABE_ITO)
    return Look(OKABE_ITO[index % len(OKABE_ITO)], MARKERS[(index + turn) % len(MARKERS)], LINES[turn % len(LINES)])
