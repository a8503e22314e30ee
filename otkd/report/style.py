"""How figures look: one colour-blind-safe colour per method, the same in every figure of a report."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from otkd.report.frame import baselines, variants

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B3A100")
"""Okabe & Ito's palette without black (the teacher's), its yellow darkened to be seen on white."""
FLOOR, TEACHER = "#6B6B6B", "#000000"
MARKERS, LINES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", "-.", ":")
DPI = 150


class Look(NamedTuple):
    colour: str
    marker: str
    line: str


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


def tidy(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels and a quiet frame."""
    axes.set_title(plain(title), fontsize=10, loc="left")
    axes.set_xlabel(plain(x), fontsize=9)
    axes.set_ylabel(plain(y), fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, panels: np.ndarray) -> None:
    """One legend under all panels, in as many columns as fit."""
    found: dict[str, Any] = {}
    for axes in panels.flat:
        found |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    inches = 0.6 + 0.075 * max(map(len, found), default=1)
    columns = max(1, min(len(found), int(figure.get_figwidth() / inches)))
    place = {"loc": "outside lower center", "ncols": columns}
    figure.legend(list(found.values()), list(found), fontsize=8.5, frameon=False, **place)


def plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _look(index: int) -> Look:
    turn = index // len(OKABE_ITO)
    return Look(OKABE_ITO[index % len(OKABE_ITO)], MARKERS[index % len(MARKERS)], LINES[turn % len(LINES)])
