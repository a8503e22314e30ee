"""Images that are decoded as they are needed, by worker processes.

A worker is sent rows and draws and returns a batch of finished pixels, so neither what it makes nor the order of
batches depends on how many workers there are. Evaluation scales and cuts as torchvision's `Resize` and `CenterCrop` do,
training as its `resized_crop`, on PIL images. This needs PIL alone; torchvision would take seconds to import.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from otkd.core.augment import ResizedCrop
from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.data.crops import box
from otkd.data.decode import decode, reason
from otkd.data.source import Encoded
from otkd.data.stores import Pixels, Want

log = logging.getLogger(__name__)

PREFETCH = 2
"""Batches that a worker makes ahead."""
TOLD = 10
"""Images left out of one pass that are told one by one."""
WAYS_OUT = "Mend the file (`otkd data verify` lists all that are unreadable)"


class Unreadable(NamedTuple):
    """One image that could not be decoded."""

    row: int
    """Of the split as it lies on disk."""
    reason: str


class Streamed:
    """Images of a split that is not held in memory; a `Store` that makes resized crops itself.

    Args:
        encoded: the images as they lie on disk.
        card: channels, side, and the size that images are scaled to before the central crop.
        crop: how resized crops are drawn; None without them.
        device: where batches are wanted.
        workers: processes that decode; 0 decodes in this one.
        skip: images of one call of `batches` that may be left out because they are unreadable.

    Raises:
        DataError: the card's `resize` is smaller than its side.
    """

    crops = True

    def __init__(
        self,
        encoded: Encoded,
        card: DataCard,
        crop: ResizedCrop | None,
        *,
        device: torch.device,
        workers: int,
        skip: int,
    ) -> None:
        if card.resize < card.side:
            raise DataError(
                f"images are scaled to {card.resize} pixels, and {card.side} are to be cut out of them. "
                f"Set the card's resize to {card.side} or more."
            )
        self.encoded, self.device, self.workers, self.skip = encoded, device, workers, skip
        self._reader = _Reader(encoded, card, crop)

    def batches(self, wants: Iterable[Want]) -> Iterator[Pixels]:
        """The pixels of each batch, in order.

        Raises:
            DataError: more than `skip` images are unreadable (names the last), or a worker process has ended.
        """
        left_out = 0
        for pixels, unreadable in self._decoded(wants):
            for image in unreadable:
                self._leave_out(image, left_out)
                left_out += 1
            yield Pixels(pixels.pixels_BHWC.to(self.device, non_blocking=True), pixels.kept_B)

    def _leave_out(self, image: Unreadable, before: int) -> None:
        where = self.encoded.where(image.row)
        if before >= self.skip:
            earlier = f" {before} before it have been left out, as many as may be." if before else ""
            raise DataError(
                f"{where}: unreadable image ({image.reason}).{earlier} {WAYS_OUT}, or let more be left out: "
                f"`data: {{skip: N}}`."
            )
        if before < TOLD:
            log.warning("%s: unreadable image left out (%s)", where, image.reason)
        elif before == TOLD:
            log.warning("more unreadable images are left out; `otkd data verify` lists all of them")

    def _decoded(self, wants: Iterable[Want]) -> Iterator[_Decoded]:
        failure = None
        try:
            yield from self._start(wants)
        except (RuntimeError, OSError, EOFError) as error:
            if not self.workers:
                raise
            failure = str(error) or repr(error)
        if failure:  # raised here because the caught error would keep the other workers alive
            raise DataError(
                f"a process that decodes images has ended ({failure}). Mostly memory has run out, or shared memory "
                "(/dev/shm; in a container --shm-size). Take smaller batches or fewer workers; with 0 workers images "
                "are decoded without processes of their own."
            )

    def _start(self, wants: Iterable[Want]) -> Iterator[_Decoded]:
        loader = DataLoader(
            self._reader,
            batch_size=None,
            sampler=map(_order, wants),
            num_workers=self.workers,
            prefetch_factor=PREFETCH if self.workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # workers draw nothing; by default it is the global one
        )
        with _signals_kept():
            return iter(loader)


class _Order(NamedTuple):
    """A `Want` that is cheap to send to a process, which tensors are not."""

    rows: list[int]
    crop_BR: NDArray[np.float32] | None


class _Decoded(NamedTuple):
    pixels: Pixels
    unreadable: list[Unreadable]


def _order(want: Want) -> _Order:
    return _Order(want.rows_B.tolist(), None if want.crop_BR is None else want.crop_BR.numpy())


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Undo what a DataLoader does to SIGCHLD: when a worker ends, it would raise wherever the main thread then is.

    Without it the next batch raises, after at most five seconds.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


class _Reader(Dataset[_Decoded]):
    """Makes whole batches; copied into every worker."""

    def __init__(self, encoded: Encoded, card: DataCard, crop: ResizedCrop | None) -> None:
        self.encoded, self.card, self.crop = encoded, card, crop

    def __getitem__(self, order: _Order) -> _Decoded:
        shape = (self.card.side, self.card.side, self.card.channels)
        pixels_BHWC = np.empty((len(order.rows), *shape), np.uint8)
        kept: list[int] = []
        unreadable: list[Unreadable] = []
        for row, grouped in groupby(range(len(order.rows)), order.rows.__getitem__):  # views are decoded once
            places = list(grouped)
            try:
                picture = decode(self.encoded.read(row), self.card.channels)
            except Exception as error:  # PIL has a dozen ways to refuse a broken image
                unreadable.append(Unreadable(row, reason(error)))
                continue
            for place in places:
                pixels_BHWC[place] = np.asarray(self._fitted(picture, order, place)).reshape(shape)
            kept += places
        if not unreadable:
            return _Decoded(Pixels(torch.from_numpy(pixels_BHWC)), [])
        return _Decoded(Pixels(torch.from_numpy(pixels_BHWC[kept]), torch.tensor(kept, dtype=torch.int64)), unreadable)

    def _fitted(self, picture: Image.Image, order: _Order, place: int) -> Image.Image:
        if order.crop_BR is None or self.crop is None:
            return central(picture, self.card.resize, self.card.side)
        crop_R = torch.from_numpy(order.crop_BR[place])
        top, left, height, width = box(crop_R, self.crop, picture.height, picture.width)
        part = picture.crop((left, top, left + width, top + height))
        return part.resize((self.card.side, self.card.side), Image.Resampling.BILINEAR)


def central(picture: Image.Image, resize: int, side: int) -> Image.Image:
    """The middle (side × side) of an image that is scaled so that its shorter side is `resize` ≥ `side` pixels."""
    short, long = sorted(picture.size)
    scaled = int(resize * long / short)
    size = (resize, scaled) if picture.width == short else (scaled, resize)
    left, top = (round((length - side) / 2) for length in size)
    return picture.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
