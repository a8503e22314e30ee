"""Matrices as heat maps: what MLflow's page of a trial shows of its transport plan and of its mistakes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from otkd.core.confusion import Confusion
from otkd.core.records import Picture, Pictures

logger = logging.getLogger("otkd.track")

NUMBERED = 20
"""The most classes whose cells have their counts written in."""


def heat_maps(text: str, key: str) -> list[tuple[str, Figure]]:
    """Heat maps by name; none where they cannot be drawn, which is no reason to leave a run open."""
    try:
        return [(name, heat_map(picture)) for name, picture in Pictures.model_validate_json(text).pictures.items()]
    except Exception as error:
        logger.warning("the pictures of %s cannot be drawn: %s: %s", key, type(error).__name__, error)
        return []


def class_name(label: int, class_names: Sequence[str]) -> str:
    """A class's name, or its number where classes have no names."""
    return class_names[label] if class_names else str(label)


def confusion_map(confusion: Confusion, class_names: Sequence[str] = ()) -> Figure:
    """Rows are classes, columns what they were taken for, in percent of the row's images; dark is none."""
    counts_KK = np.zeros((confusion.classes, confusion.classes))
    for label, taken, images in confusion.cells:
        counts_KK[label, taken] = images
    shares_KK = 100 * counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares_KK, cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, label="% of the class's test images")
    if confusion.classes <= NUMBERED:
        shown = [class_name(label, class_names) for label in range(confusion.classes)]
        axes.set_xticks(range(confusion.classes), shown, rotation=90 if class_names else 0)
        axes.set_yticks(range(confusion.classes), shown)
        for label, taken, images in confusion.cells:
            colour = "black" if shares_KK[label, taken] > 60 else "white"
            axes.text(taken, label, str(images), ha="center", va="center", fontsize=7, color=colour)
    axes.set_title("test images, last weights", fontsize=9)
    axes.set_xlabel("taken for class")
    axes.set_ylabel("class")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=100)


def heat_map(picture: Picture) -> Figure:
    """A matrix, dark where it is 0; lines part the classes of rows and columns."""
    rows, columns = len(picture.matrix), len(picture.matrix[0])
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(picture.matrix, cmap="viridis", vmin=0, interpolation="nearest", aspect="auto")
    figure.colorbar(image, label="mass")
    if picture.classes:
        starts = [0, *(i for i, (one, other) in enumerate(pairwise(picture.classes), 1) if one != other)]
        for edge in starts[1:]:
            axes.axhline(edge - 0.5, color="white", linewidth=0.4)
            axes.axvline(edge - 0.5, color="white", linewidth=0.4)
        names = [str(picture.classes[start]) for start in starts]
        middles = [(start + end - 1) / 2 for start, end in pairwise([*starts, rows])]
        axes.set_xticks(middles, names)
        axes.set_yticks(middles, names)
    axes.set_title(picture.about, fontsize=9)
    axes.set_xlabel(f"teacher ({columns})" if not picture.classes else "teacher, by class")
    axes.set_ylabel(f"student ({rows})" if not picture.classes else "student, by class")
    return figure
