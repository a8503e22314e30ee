"""The figure that is compared, by method: every seed a point, mean and spread, baseline and teacher as lines."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otkd.core.records import SweepInfo
from otkd.report import choice, stats, style
from otkd.report.choice import Metric
from otkd.report.frame import budget, pairs, seeds, variants
from otkd.report.tables.accuracy import Line, lines, teacher

TITLE = "Results by method"
ORDER = 10

BEHIND = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
"""White under a note, so that no line runs through it."""


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """One panel per pair; None where nothing has finished."""
    found = {pair: lines(frame, pair) for pair in pairs(frame)}
    if not any(line.cell.summary.n for group in found.values() for line in group):
        return None
    height, wider = 1.5 + 0.34 * len(variants(frame)), style.beside(map(style.tick, variants(frame)))
    drawing, panels = style.panels(len(found), (7.4, height), (4.3 + wider / 2, height))
    for axes, (pair, group) in zip(panels.flat, found.items(), strict=False):
        _panel(axes, frame, pair, group)
        axes.tick_params(labelleft=axes in panels[:, 0])
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Selection rule, n, spread and budget."""
    return (
        f"{choice.metric(frame).sentence} Circles are seeds (n = {seeds(frame)} where all finished), the "
        "bar is mean ± sample standard deviation where a method has two seeds or more. The horizontal axis does not "
        f"begin at 0. {budget(frame)}{choice.first_listed(frame, [choice.floor(frame, pair) for pair in pairs(frame)])}"
    )


def _panel(axes: Axes, frame: pd.DataFrame, pair: str, group: list[Line]) -> None:
    looks, metric = style.looks(frame), choice.metric(frame)
    for height, line in enumerate(group):
        _draw(axes, height, line, looks[line.variant], metric)
    axes.set_yticks(range(len(group)), [style.tick(line.variant) for line in group])
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.margins(x=0.08)
    lines_in_words = _lines(axes, frame, pair, group)
    style.tidy(axes, f"{pair}\n{lines_in_words}", metric.head, "")
    axes.grid(False, axis="y")


def _draw(axes: Axes, height: int, line: Line, look: style.Look, metric: Metric) -> None:
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
    style.mark(axes, mean, height, _words(line, metric))
    if line.cell.lacks:
        place = (mean, height + 0.34)
        axes.annotate(line.cell.lacks, place, fontsize=7, ha="center", va="center", color="#555", bbox=BEHIND)


def _words(line: Line, metric: Metric) -> str:
    lacks = f"; {line.cell.lacks}" if line.cell.lacks else ""
    told = style.told(line.variant, line.cell.summary, metric.suffix, metric.digits)
    return f"{told}, {style.each(line.cell.by_seed, metric.digits)}{lacks}"


def _lines(axes: Axes, frame: pd.DataFrame, pair: str, group: list[Line]) -> str:
    """Draw the baseline and the teacher; say in words where they stand."""
    words, metric, base = [], choice.metric(frame), choice.floor(frame, pair)
    floor = next((line.cell.summary for line in group if line.variant == base), None)
    if floor is not None and floor.n:
        axes.axvline(floor.mean, color=style.FLOOR, linestyle=":", linewidth=1.2, zorder=1)
        words.append(f"dotted: {base} {stats.number(floor.mean, metric.digits)}")
    top = teacher(frame, pair).summary
    if top.n:
        low, high = axes.get_xlim()
        near = low - (high - low) <= top.mean <= high + (high - low)
        figure = stats.number(top.mean, metric.digits)
        words.append(f"dashed: teacher {figure}" if near else f"teacher {figure} (off the scale)")
        if near:
            axes.axvline(top.mean, color=style.TEACHER, linestyle="--", linewidth=1.2, zorder=1)
            style.mark(axes, top.mean, len(group) - 0.6, style.told("teacher", top, metric.suffix, metric.digits))
    return "\n".join(words)
