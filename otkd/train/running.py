"""The epoch under way: sums over its batches, kept on the device so that no step has to wait for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Names = tuple[str, ...]


class Running:
    """What has been counted so far in an epoch; a part of checkpoints, so that training goes on in the middle of one.

    Args:
        device: where the sums lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self.images = 0
        self.spent: tuple[float, ...] = (0.0,) * 5
        """Before training was interrupted: seconds of the student, the teacher and the data; joules of the device, and
        the seconds in which it used them."""
        self.unsound = torch.zeros((), dtype=torch.bool, device=device)
        """Whether a loss was not finite."""
        self._device = device
        self._sums: dict[Names, Tensor] = {}

    def add(self, images: int, means: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        """Count a batch, or a part of one: means over its images, and sums over them."""
        self._add(means, images)
        self._add(counts, 1)
        self.images += images

    def means(self) -> dict[str, float]:
        """The mean of everything over the images so far, in one look at the device."""
        totals = torch.cat([*self._sums.values()]).tolist() if self._sums else []
        means: dict[str, float] = {}
        for name, total in zip((name for names in self._sums for name in names), totals, strict=True):
            means[name] = means.get(name, 0.0) + total / self.images
        return means

    def state(self, spent: tuple[float, ...]) -> dict[str, Any]:
        """For a checkpoint.

        Args:
            spent: since training began or went on.
        """
        return {
            "steps": self.steps,
            "images": self.images,
            "seconds": tuple(before + since for before, since in zip(self.spent, spent, strict=True)),
            "unsound": self.unsound,
            "sums": list(self._sums.items()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.steps, self.images = state["steps"], state["images"]
        self.spent = (*state["seconds"], math.nan, math.nan)[:5]  # older checkpoints have no energy
        self.unsound = state["unsound"].to(self._device)
        self._sums = {tuple(names): sums.to(self._device) for names, sums in state["sums"]}

    def _add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Two operations on the device, however many values there are."""
        if values:
            stacked = torch.stack([value.float() for value in values.values()]).double()
            sums = self._sums.get(tuple(values))
            self._sums[tuple(values)] = stacked * weight if sums is None else sums.add_(stacked, alpha=weight)
