"""Accuracy by method: every seed a point, mean and spread, the student baseline and the teacher as lines."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otkd.core.records import SweepInfo
from otkd.report import choice, stats, style
from otkd.report.frame import baselines, budget, pairs, seeds, variants
from otkd.report.tables.accuracy import Line, lines, teacher

TITLE = "Accuracy by method"
ORDER = 10

BEHIND = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
"""White under a note, so that no line runs through it."""


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """One panel per pair; None where nothing has finished."""
    found = {pair: lines(frame, pair) for pair in pairs(frame)}
    if not any(line.cell.summary.n for group in found.values() for line in group):
        return None
    columns = min(2, len(found))
    rows = math.ceil(len(found) / columns)
    drawing, panels = style.canvas(
        rows, columns, 8.6 / columns if columns > 1 else 7.4, 1.5 + 0.34 * len(variants(frame))
    )
    for axes, (pair, group) in zip(panels.flat, found.items(), strict=False):
        _panel(axes, frame, pair, group)
        axes.tick_params(labelleft=axes in panels[:, 0])
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, n, spread and budget."""
    return (
        f"{choice.metric(frame).sentence} Circles are seeds (n = {seeds(frame)} where all finished), the "
        "bar is mean ± sample standard deviation where a method has two seeds or more. The horizontal axis does not "
        f"begin at 0. {budget(frame)}"
    )


def _panel(axes: Axes, frame: pd.DataFrame, pair: str, group: list[Line]) -> None:
    looks = style.looks(frame)
    for height, line in enumerate(group):
        _draw(axes, height, line, looks[line.variant])
    axes.set_yticks(range(len(group)), [style.tick(line.variant) for line in group])
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.margins(x=0.08)
    lines_in_words = _lines(axes, frame, pair, group)
    style.tidy(axes, f"{pair}\n{lines_in_words}", choice.metric(frame).head, "")
    axes.grid(False, axis="y")


def _draw(axes: Axes, height: int, line: Line, look: style.Look) -> None:
    values = line.cell.by_seed.to_numpy(dtype=float)
    if not len(values):
        why = line.cell.lacks or "not in the sweep"
        axes.text(
            0.02,
            height,
            f"{stats.DASH} {why}",
            transform=axes.get_yaxis_transform(),
            fontsize=8,
            va="center",
            color="#555",
            bbox=BEHIND,
        )
        return
    jitter = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
    axes.scatter(values, height + jitter, s=22, facecolors="none", edgecolors=look.colour, linewidths=1.0, zorder=3)
    mean, std, n = line.cell.summary
    if n > 1:
        axes.errorbar(
            mean, height, xerr=std, fmt="|", color=look.colour, markersize=13, elinewidth=1.6, capsize=0, zorder=4
        )
    style.mark(axes, mean, height, _words(line))
    if line.cell.lacks:
        place = (mean, height + 0.34)
        axes.annotate(line.cell.lacks, place, fontsize=7, ha="center", va="center", color="#555", bbox=BEHIND)


def _words(line: Line) -> str:
    lacks = f"; {line.cell.lacks}" if line.cell.lacks else ""
    return f"{style.told(line.variant, line.cell.summary, ' %')}, {style.each(line.cell.by_seed)}{lacks}"


def _lines(axes: Axes, frame: pd.DataFrame, pair: str, group: list[Line]) -> str:
    """Draw the student baseline and the teacher; say in words where they stand."""
    words, digits = [], choice.metric(frame).digits
    floor = next((line.cell.summary for line in group if line.variant == baselines(frame).student), None)
    if floor is not None and floor.n:
        axes.axvline(floor.mean, color=style.FLOOR, linestyle=":", linewidth=1.2, zorder=1)
        words.append(f"dotted: student {floor.mean:.{digits}f}")
    top = teacher(frame, pair).summary
    if top.n:
        low, high = axes.get_xlim()
        near = low - (high - low) <= top.mean <= high + (high - low)
        words.append(f"{'dashed: ' if near else ''}teacher {top.mean:.{digits}f}{'' if near else ' (off the scale)'}")
        if near:
            axes.axvline(top.mean, color=style.TEACHER, linestyle="--", linewidth=1.2, zorder=1)
            style.mark(axes, top.mean, len(group) - 0.6, style.told("teacher", top, " %"))
    return " · ".join(words)
