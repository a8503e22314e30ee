"""Batches of one split on the device: ordered, augmented, normalised.

Every random draw comes from a generator of its own, seeded by what it is for, on the CPU: the same seed gives the same
batches on every device, from memory or from files, with any number of workers, and from any step on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.core.output import Batch
from otkd.core.seeds import derive
from otkd.data.augment import Draws, augment, draw, finish, mix, select
from otkd.data.pipeline import Images
from otkd.data.stores import Pixels, Resident, Store, Want
from otkd.data.stream import WAYS_OUT, Streamed


class Shard(NamedTuple):
    """One of several processes that share every batch."""

    rank: int
    world: int

    def of(self, count: int) -> slice:
        """The part of `count` images that is this process's; the parts differ by one image at most."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)


ALL = Shard(0, 1)


class Batches:
    """Batches of one split, made on `device`.

    Args:
        images: the split; images in memory are moved to the device once, as uint8.
        card: mean, standard deviation and usual augmentation.
        augment: of training batches; None is the card's. `Augment()` is none at all.
        batch_size: images that are drawn for a batch; with `views` it holds that many times more. The last batch may be
            smaller; a last single image is left out, as batch norm cannot take it.
        seed: the trial's seed.
        device: where batches are wanted.
        workers: processes that decode streamed images; 0 decodes in this one.
        skip: streamed images that may be unreadable in an epoch.
        shard: which images of each batch are wanted here; labels and indices are always those of the whole batch.
    """

    def __init__(
        self,
        images: Images,
        card: DataCard,
        *,
        augment: Augment | None,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        workers: int = 0,
        skip: int = 0,
        shard: Shard = ALL,
    ) -> None:
        self.device = torch.device(device)
        self.labels = images.labels.to(self.device)
        self.augment = augment or card.augment
        self.batch_size, self.seed, self.shard = batch_size, seed, shard
        self._rows = images.indices
        self.store: Store
        if isinstance(images.source, Tensor):
            source = images.source
            if self.device.type != "cpu" and len(self._rows) < len(source):
                source, self._rows = source[self._rows], torch.arange(len(self._rows))
            self.store = Resident(source, self.device)
        else:
            self.store = Streamed(
                images.source, card, self.augment.resized_crop, device=self.device, workers=workers, skip=skip
            )
        self._shift = (torch.tensor(card.mean) * 255).to(self.device)
        self._scale = (1 / (torch.tensor(card.std) * 255)).to(self.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 1)

    def epoch(self, epoch: int, stage: str = "train", start: int = 0) -> Iterator[Batch]:
        """Training batches of one epoch of a training stage: shuffled, augmented, the same whenever asked again.

        Args:
            start: batches to leave out at the beginning, because training goes on after them.
        """
        order_N = self._order(epoch, stage)
        asked: deque[tuple[Tensor, Draws]] = deque()

        def wants() -> Iterator[Want]:
            for step in range(start, len(self)):
                places_B = order_N[step * self.batch_size : (step + 1) * self.batch_size]
                places_B = places_B.repeat_interleave(self.augment.views)
                generator = torch.Generator().manual_seed(derive(self.seed, f"augment/{stage}/{epoch}", step))
                draws = draw(len(places_B), self.augment, generator)
                asked.append((places_B, draws))
                own = self._own(len(places_B))
                crop_BR = draws.crop_BR[own] if draws.crop_BR is not None and self.store.crops else None
                yield Want(self._rows[places_B[own]], crop_BR)

        for pixels in self.store.batches(wants()):
            yield self._training_batch(pixels, *asked.popleft())

    def ordered(self, batch_size: int, *, whole: bool = False) -> Iterator[Batch]:
        """Every image once, in order, not augmented: for evaluation. A batch of unreadable images alone is left out.

        Args:
            whole: the others' shards, too. Without it labels and indices are those of this shard, as the images are.

        Raises:
            DataError: more images are unreadable than may be, or all.
        """
        own = ALL if whole else self.shard
        places = torch.arange(len(self.labels)).split(batch_size)
        yield from self._plain(places_B[own.of(len(places_B))] for places_B in places)

    def of_classes(self, classes: int, each: int) -> Batch:
        """The first `each` images of each of the first `classes` classes, not augmented. Errors as for `ordered`."""
        labels = self.labels.cpu()
        rows = [torch.nonzero(labels == label)[:each, 0] for label in labels.unique()[:classes]]
        return next(self._plain([torch.cat(rows)]))

    def _order(self, epoch: int, stage: str) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self.seed, f"order/{stage}", epoch))
        return torch.randperm(len(self.labels), generator=generator)

    def _own(self, count: int) -> slice:
        """Which of so many images are to be fetched; to mix images takes all of them."""
        return slice(0, count) if self.augment.mixes else self.shard.of(count)

    def _training_batch(self, pixels: Pixels, places_B: Tensor, draws: Draws) -> Batch:
        count = len(places_B)
        own = self._own(count)
        own_draws = draws if own == slice(0, count) else select(draws, torch.arange(count)[own])
        if pixels.kept_B is not None:
            self._may_leave_out(own, count, len(pixels.kept_B))
            places_B, own_draws = places_B[pixels.kept_B], select(own_draws, pixels.kept_B)
        raw_BHWC = augment(pixels.pixels_BHWC, own_draws, self.augment, cropped=self.store.crops)
        image_BCHW = finish(self._normalised(raw_BHWC), own_draws, self.augment)
        places_B = places_B.to(self.device, non_blocking=True)
        target_B = self.labels[places_B]
        mixed = None
        if self.augment.mixes:
            image_BCHW, mixed = mix(image_BCHW, target_B, own_draws, self.augment)
            image_BCHW = image_BCHW[self.shard.of(len(image_BCHW))]
        return Batch(image_BCHW, target_B, places_B, mixed)

    def _may_leave_out(self, own: slice, count: int, left: int) -> None:
        if own != slice(0, count):
            raise DataError(
                "an image is unreadable (a warning has named it), and none can be left out where processes share every "
                "batch, as the others know nothing of it. Mend the file (`otkd data verify` lists all that are "
                "unreadable), or train on one device: `resources: {gpus_per_trial: 1}`."
            )
        if left < 2:
            raise DataError(
                f"so many of a batch's {count:,} images are unreadable (warnings have named them) that fewer than two "
                f"are left, which batch norm cannot take. {WAYS_OUT}, or take larger batches."
            )

    def _plain(self, places: Iterable[Tensor]) -> Iterator[Batch]:
        """Batches of images at these places of the split, as they are, without those of which no image can be read."""
        asked: deque[Tensor] = deque()
        left_out = made = 0

        def wants() -> Iterator[Want]:
            for places_B in places:
                asked.append(places_B)
                yield Want(self._rows[places_B])

        for pixels in self.store.batches(wants()):
            places_B = asked.popleft()
            if pixels.kept_B is not None:
                places_B = places_B[pixels.kept_B]
                if not len(places_B):
                    left_out += 1
                    continue
            made += 1
            places_B = places_B.to(self.device, non_blocking=True)
            yield Batch(self._normalised(pixels.pixels_BHWC), self.labels[places_B], places_B)
        if left_out and not made:
            raise DataError(f"none of the images that are to be looked at can be read. {WAYS_OUT}.")

    def _normalised(self, pixels_BHWC: Tensor) -> Tensor:
        """Images (B, C, H, W), channels last, of mean 0 and deviation 1."""
        batch, height, width, channels = pixels_BHWC.shape
        rows_BHR = pixels_BHWC.view(batch, height, width * channels)  # to broadcast over three channels is slow on CPUs
        image_BHR = rows_BHR.float().sub_(self._shift.repeat(width)).mul_(self._scale.repeat(width))
        return image_BHR.view(pixels_BHWC.shape).permute(0, 3, 1, 2)
