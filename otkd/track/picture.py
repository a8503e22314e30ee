"""Matrices as heat maps: what MLflow's page of a trial shows of its transport plan."""

from __future__ import annotations

import logging
from itertools import pairwise

from matplotlib.figure import Figure

from otkd.core.records import Picture, Pictures

logger = logging.getLogger("otkd.track")


def heat_maps(text: str, key: str) -> list[tuple[str, Figure]]:
    """Heat maps by name; none where they cannot be drawn, which is no reason to leave a run open."""
    try:
        return [(name, heat_map(picture)) for name, picture in Pictures.model_validate_json(text).pictures.items()]
    except Exception as error:
        logger.warning("the pictures of %s cannot be drawn: %s: %s", key, type(error).__name__, error)
        return []


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
