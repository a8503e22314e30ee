"""Where the pixels of a split come from: memory, or files that are decoded as they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Want(NamedTuple):
    """The images of one batch."""

    rows_B: Tensor
    """int64, on the CPU: rows of the store."""
    crop_BR: Tensor | None = None
    """Draws of resized crops (`otkd.data.crops.boxes`); None for whole images."""


class Pixels(NamedTuple):
    """The images of one batch as raw pixels on the device."""

    pixels_BHWC: Tensor
    """uint8"""
    kept_B: Tensor | None = None
    """int64, on the CPU: which of the wanted images these are; None for all."""


class Store(Protocol):
    """Every image of a data set's training or test split."""

    crops: bool
    """Whether it makes resized crops itself, as it reads."""

    def batches(self, wants: Iterable[Want]) -> Iterator[Pixels]:
        """The pixels of each batch, in order."""
        ...


class Resident:
    """Images that are held on the device.

    Args:
        images_NHWC: uint8; on a CPU they stay where they are, in memory or mapped from a file that all processes share.
    """

    crops = False

    def __init__(self, images_NHWC: Tensor, device: torch.device | str) -> None:
        self.images_NHWC = images_NHWC.to(device)
        self._rows_NP = self.images_NHWC.view(len(images_NHWC), -1)

    def batches(self, wants: Iterable[Want]) -> Iterator[Pixels]:
        """The pixels of each batch, in order."""
        for want in wants:
            rows_BP = self._rows_NP.index_select(0, want.rows_B.to(self._rows_NP.device, non_blocking=True))
            yield Pixels(rows_BP.view(-1, *self.images_NHWC.shape[1:]))
