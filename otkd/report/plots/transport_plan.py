"""Where mass goes: the transport plans that trials keep of one fixed batch when they have ended."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import ValidationError

from otkd.core.records import Picture, Pictures, SweepInfo
from otkd.report import style
from otkd.report.frame import pairs, students, variants

TITLE = "Transport plans"
ORDER = 61

MOST = 12
"""Plans that are drawn at most; one of the first epoch does not count."""
LAST = "last epoch"
WITHOUT = {"", "ce", "kd"}
"""Terms that keep no picture."""


class Plan(NamedTuple):
    """One picture of one trial."""

    pair: str
    variant: str
    seed: int
    name: str
    """Term and part, `transport-embedding`."""
    when: str
    """`epoch 1`, or `last epoch`."""
    picture: Picture


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo, *, files: Any = None) -> Figure | None:
    """A panel per pair, method and layer, beside one of its first epoch; None where no plan is on record.

    Args:
        files: `text(key, path)` gives a file of a trial's run, or None.
    """
    if files is None:
        return None
    methods = [(pair, variant) for pair in pairs(frame) for variant in variants(frame)]
    found = list(islice((plan for method in methods for plan in _plans(frame, *method, files)), MOST + 1))
    if not found:
        return None
    shown = [plan for several in found[:MOST] for plan in several]
    sizes = [(5.6, 5.5), (4.6, 4.5), (3.9, 3.8)] + [(3.6, 3.5)] * any(len(several) > 1 for several in found)
    drawing, panels = style.panels(len(shown), *sizes)
    for axes, plan in zip(panels.flat, shown, strict=False):
        _draw(drawing, axes, plan)
    if len(found) > MOST:
        drawing.suptitle(f"the first {MOST} plans; there are more", fontsize=9)
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """Which batch, which weights, which seed, and what the shares mean."""
    return (
        "Plans between student (rows) and teacher (columns) for one fixed batch of training images, with the last "
        "epoch's weights and, where they are on record, with those after the first epoch; the live page has those "
        "between. One trial a method, its lowest finished seed: no spread is given. Dark is no mass; each panel has a "
        "scale of its own. Where rows and columns are images, they are ordered by class, and the title "
        "says which share of the mass stays within the class, and which share would if it went everywhere alike. A "
        "sharper plan is no better student."
    )


def _plans(frame: pd.DataFrame, pair: str, variant: str, files: Any) -> Iterator[list[Plan]]:
    """The pictures of the lowest seed that finished and kept some: of each name that of the first epoch, and the last.

    Where no earlier one is on record there is the last alone.
    """
    rows = students(frame)
    rows = rows[(rows["pair"] == pair) & (rows["variant"] == variant) & (rows["status"] == "finished")]
    transports = [not set(terms.split("+")) <= WITHOUT for terms in rows["terms"]]
    rows = rows[pd.Series(transports, index=rows.index, dtype=bool)]
    for key, seed in rows.sort_values("seed")[["key", "seed"]].itertuples(index=False):
        pictures = _pictures(files.text(key, "snapshots.json"))
        if pictures:
            for name, by_epoch in pictures.items():
                yield [Plan(pair, variant, int(seed), name, when, picture) for when, picture in by_epoch.items()]
            return


def _pictures(text: str | None) -> dict[str, dict[str, Picture]]:
    """Name → epoch → matrix."""
    try:
        kept = Pictures(pictures={}) if text is None else Pictures.model_validate_json(text)
    except ValidationError:
        return {}
    found: dict[str, dict[str, Picture]] = {}
    for when, made in (*((f"epoch {one.epoch}", one.pictures) for one in kept.earlier[:1]), (LAST, kept.pictures)):
        for name, picture in made.items():
            if picture.matrix and picture.matrix[0]:
                found.setdefault(name, {})[when] = picture
    return found


def _draw(drawing: Figure, axes: Axes, plan: Plan) -> None:
    mass_NM = np.asarray(plan.picture.matrix, dtype=float)
    image = axes.imshow(mass_NM, cmap="viridis", vmin=0, interpolation="nearest", aspect="auto")
    bar = drawing.colorbar(image, ax=axes)
    bar.set_label("mass", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    words, kind = plan.picture.about, ""
    if plan.picture.classes:
        words = _by_class(axes, mass_NM, plan.picture.classes)
        kind = ", by class"
    title = f"{plan.pair}\n{plan.variant}, seed {plan.seed}, {plan.when}\n{plan.name}: {words}"
    style.tidy(axes, title, f"teacher{kind}", f"student{kind}", points=8.5)
    axes.grid(False)


def _by_class(axes: Axes, mass_NM: NDArray[np.float64], classes: tuple[int, ...]) -> str:
    """Part the classes by lines, name the blocks, and say how much mass stays within its class."""
    starts = [0, *(index for index, (one, other) in enumerate(pairwise(classes), 1) if one != other), len(classes)]
    for edge in starts[1:-1]:
        axes.axhline(edge - 0.5, color="white", linewidth=0.4)
        axes.axvline(edge - 0.5, color="white", linewidth=0.4)
    blocks = list(pairwise(starts))
    middles, labels = [(start + end - 1) / 2 for start, end in blocks], [str(classes[start]) for start, _ in blocks]
    axes.set_xticks(middles, labels)
    axes.set_yticks(middles, labels)
    for (start, end), middle, label in zip(blocks, middles, labels, strict=True):
        leaves = mass_NM[start:end].sum()
        stays = mass_NM[start:end, start:end].sum()
        share = f"{100 * stays / leaves:.0f} %" if leaves else "none"
        style.mark(axes, middle, middle, f"class {label}: {share} of its mass goes to the same class, one trial")
    kept, alike = within(mass_NM, classes)
    return f"{100 * kept:.0f} % within class ({100 * alike:.0f} % if alike)"


def within(mass_NM: NDArray[np.float64], classes: tuple[int, ...]) -> tuple[float, float]:
    """Share of the mass that stays within its class, and that of a plan with the same sums that pairs at random."""
    total = mass_NM.sum()
    same_NM = np.equal.outer(classes, classes)
    if not total:
        return 0.0, 0.0
    alike_NM = np.outer(mass_NM.sum(axis=1), mass_NM.sum(axis=0)) / total**2
    return float(mass_NM[same_NM].sum() / total), float(alike_NM[same_NM].sum())
