"""What the best distilled method mistakes less, and more, than a baseline: difference of confusion matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import ValidationError

from otkd.core import names
from otkd.core.confusion import Confusion
from otkd.core.records import SweepInfo
from otkd.report import choice, stats, style
from otkd.report.files import PER_CLASS, by_label
from otkd.report.frame import budget, pairs, students
from otkd.report.tables.accuracy import lines

TITLE = "Changes in confusions"
ORDER = 46

SHOWN = 20
"""The most classes that are drawn."""
WRITTEN = 10
"""The most classes whose cells have their figures written in."""
MARKED = 40
"""Cells of a panel that the page names."""


class Change(NamedTuple):
    """One method against one baseline on one pair."""

    pair: str
    method: str
    base: str
    seeds: int
    """Seeds that both finished and whose counts are on record."""
    points_KK: NDArray[np.float64]
    """Row: class; column: class it is taken for; percentage points of the row's test images."""
    labels: tuple[str, ...]


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo, *, files: Any = None) -> Figure | None:
    """A panel per pair; None where no counts of test images are on record.

    Args:
        files: `text(key, path)` gives a file of a trial's run, or None.
    """
    if files is None:
        return None
    found = [change for pair in pairs(frame) if (change := _change(frame, pair, files)) is not None]
    if not found:
        return None
    drawing, panels = style.panels(len(found), (6.8, 6.3), (5.2, 4.8))
    for axes, change in zip(panels.flat, found, strict=False):
        _draw(drawing, axes, change)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """What is subtracted from what, and by which rule the methods and classes were picked."""
    metric, picks = choice.metric(frame), [_picked(frame, pair) for pair in pairs(frame)]
    base = frame.attrs.get(choice.BASELINE, "the student alone, or of KD where that has no figure")
    picked = (
        " The method was picked by the same images, so this describes a difference and is no test of it."
        if metric.column.startswith(names.TEST)
        else ""
    )
    return (
        "Share of each class's test images that is taken for each class, last epoch's weights, mean over the seeds "
        f"that both methods finished: that of the method with the {metric.best} mean {metric.by} (among those with all "
        f"seeds) less that of {base}. Orange is more often, purple less often: on the "
        f"diagonal orange is better, elsewhere purple.{picked} Of more than {SHOWN} classes those with the largest "
        "sums of absolute differences in row and column are shown, named on the "
        f"axes. {budget(frame)}{choice.first_listed(frame, [pick[1] for pick in picks if pick])}"
    )


def _change(frame: pd.DataFrame, pair: str, files: Any) -> Change | None:
    picked = _picked(frame, pair)
    if picked is None:
        return None
    left, right = (_keys(frame, pair, name) for name in picked)
    seeds = [seed for seed in left if seed in right]
    counts = {key: _counts(files.text(key, "confusion.json")) for seed in seeds for key in (left[seed], right[seed])}
    both = [(one, other) for seed in seeds if (one := counts[left[seed]]) and (other := counts[right[seed]])]
    both = [(one, other) for one, other in both if one.classes == other.classes == both[0][0].classes]
    if not both:
        return None
    points_KK = np.mean([_shares(one) - _shares(other) for one, other in both], axis=0)
    return Change(pair, *picked, len(both), points_KK, _labels(files, left[seeds[0]], len(points_KK)))


def _picked(frame: pd.DataFrame, pair: str) -> tuple[str, str] | None:
    """The best method by its mean, and the baseline that it is held against."""
    cells = {line.variant: line.cell.summary for line in lines(frame, pair) if line.cell.summary.n}
    base = next((name for name in choice.against(frame, pair).values() if name in cells), None)
    others = {name: found for name, found in cells.items() if name != base}
    if base is None or not others:
        return None
    most = max(found.n for found in others.values())
    able, sign = (name for name in others if others[name].n == most), choice.metric(frame).sign
    return max(able, key=lambda name: sign * others[name].mean), base


def _keys(frame: pd.DataFrame, pair: str, variant: str) -> dict[int, str]:
    """Seed → key of the finished trials of a method."""
    rows = students(frame)
    rows = rows[(rows["pair"] == pair) & (rows["variant"] == variant) & (rows["status"] == "finished")]
    return dict(zip(rows["seed"], rows["key"], strict=True))


def _counts(text: str | None) -> Confusion | None:
    try:
        return None if text is None else Confusion.model_validate_json(text)
    except ValidationError:
        return None


def _shares(counts: Confusion) -> NDArray[np.float64]:
    """Percent of each class's images; a class without any has a row of zeros."""
    counts_KK = np.zeros((counts.classes, counts.classes))
    for label, taken, images in counts.cells:
        counts_KK[label, taken] = images
    return 100 * counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)


def _labels(files: Any, key: str, classes: int) -> tuple[str, ...]:
    """Names of the classes, or their numbers where none are on record."""
    found = tuple(one.name for one in by_label(files.text(key, PER_CLASS)))
    return found if len(found) == classes and all(found) else tuple(map(str, range(classes)))


def _largest(points_KK: NDArray[np.float64]) -> NDArray[np.intp]:
    """The classes to show, in order."""
    sums_K = np.abs(points_KK).sum(axis=0) + np.abs(points_KK).sum(axis=1)
    return np.sort(np.argsort(-sums_K, kind="stable")[:SHOWN])


def _draw(drawing: Figure, axes: Axes, change: Change) -> None:
    chosen = _largest(change.points_KK)
    shown_KK = change.points_KK[np.ix_(chosen, chosen)]
    labels = [change.labels[index] for index in chosen]
    most = float(np.abs(shown_KK).max()) or 1.0
    image = axes.imshow(shown_KK, cmap="PuOr_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
    bar = drawing.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("percentage points of the class's test images", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _name_cells(axes, shown_KK, labels, change.seeds)
    if len(labels) <= WRITTEN:
        _write(axes, shown_KK, most)
    ticks = [style.tick(label, 18) for label in labels]
    axes.set_xticks(range(len(ticks)), ticks, rotation=90 if max(map(len, ticks)) > 2 else 0)
    axes.set_yticks(range(len(ticks)), ticks)
    some = f", {len(chosen)} of {len(change.labels)} classes" if len(chosen) < len(change.labels) else ""
    title = f"{change.pair}\n{change.method} less {change.base}, n = {change.seeds}{some}"
    style.tidy(axes, title, "taken for class", "class")
    axes.grid(False)
    axes.tick_params(labelsize=7.5)


def _name_cells(axes: Axes, shown_KK: NDArray[np.float64], labels: list[str], seeds: int) -> None:
    largest = np.argsort(-np.abs(shown_KK), axis=None, kind="stable")[:MARKED]
    for row, column in sorted(zip(*np.unravel_index(largest, shown_KK.shape), strict=True)):
        value = stats.number(float(shown_KK[row, column]), 1, sign=True)
        what = "recognised" if row == column else f"taken for {labels[column]}"
        style.mark(axes, float(column), float(row), f"{labels[row]} {what}: {value} points, n = {seeds}")


def _write(axes: Axes, shown_KK: NDArray[np.float64], most: float) -> None:
    for (row, column), value in np.ndenumerate(shown_KK):
        if abs(value) >= 0.05:
            colour = "white" if abs(value) > 0.6 * most else "black"
            text = stats.number(float(value), 1, sign=True)
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
