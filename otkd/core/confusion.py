"""Which class the images of each class were taken for: written by the engine, shown by the tracker."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field, PositiveInt

from otkd.core.config import StrictModel


class ClassFigures(NamedTuple):
    """How one class was recognised."""

    label: int
    images: int
    right: int
    mistaken_for: int | None
    """The other class that it was taken for most often (the lower label of equals); None when it never was."""
    mistaken: int
    """Images taken for that class."""

    @property
    def top1(self) -> float | None:
        """Share of its images that were recognised, in percent; None without images."""
        return 100 * self.right / self.images if self.images else None


class Confusion(StrictModel):
    """Counts of images by their class and the class they were taken for."""

    classes: PositiveInt
    cells: tuple[tuple[int, int, int], ...] = Field(strict=False)
    """(class, class it was taken for, images), in order, without those of no image: of 1000 classes few cells are not
    empty."""

    def by_class(self) -> list[ClassFigures]:
        """The figures of every class, by label."""
        taken: list[dict[int, int]] = [{} for _ in range(self.classes)]
        for label, other, images in self.cells:
            taken[label][other] = images
        return [_figures(label, counts) for label, counts in enumerate(taken)]


def _figures(label: int, counts: dict[int, int]) -> ClassFigures:
    others = {other: images for other, images in counts.items() if other != label}
    worst = max(others, key=lambda other: (others[other], -other), default=None)
    mistaken = 0 if worst is None else others[worst]
    return ClassFigures(label, sum(counts.values()), counts.get(label, 0), worst, mistaken)
