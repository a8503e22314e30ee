"""Counts which class each test image is taken for, in the pass that measures accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from otkd.core.confusion import Confusion
from otkd.train.distributed import Group


class Counts:
    """Collects on the device; nothing waits for it before `record`.

    Args:
        classes: K; labels are 0 … K - 1.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self._cells = [torch.empty(0, dtype=torch.int64, device=device)]

    def add(self, target_B: Tensor, taken_B: Tensor, logits_BK: Tensor) -> None:
        """Count a batch: its classes, and those that the network takes it for."""
        self._cells.append(target_B * self.classes + taken_B)

    def record(self, group: Group) -> Confusion:
        """The counts of all processes; each of them has to call this."""
        own = torch.cat(self._cells).bincount(minlength=self.classes**2)
        total = group.summed([own], [own])[0]
        assert total is not None
        filled = total.nonzero()[:, 0]
        cells = zip(filled.tolist(), total[filled].tolist(), strict=True)
        return Confusion(classes=self.classes, cells=tuple((*divmod(cell, self.classes), n) for cell, n in cells))
