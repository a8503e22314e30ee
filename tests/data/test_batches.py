"""Batches from memory and from files: the same, from any step on, by any number of processes, whole or in shards."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from otkd.core.augment import Augment, Jitter, RandAugment, ResizedCrop, TrivialAugment
from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.core.output import Batch
from otkd.data.batches import Batches, Shard
from otkd.data.pipeline import Images

SIDE, COUNT = 9, 23
CARD = DataCard(
    classes=5,
    channels=3,
    side=SIDE,
    train=COUNT,
    test=0,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    augment=Augment(pad=2, flip=True),
    about="made up",
    streamed=True,
    resize=SIDE,
)
LABELS = torch.arange(COUNT) * 2 % 5
WITHOUT_CROPS = {
    "plain": Augment(),
    "usual": Augment(pad=2, flip=True),
    "jitter": Augment(jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
    "rand_augment": Augment(flip=True, policy=RandAugment(name="rand_augment")),
    "trivial_augment": Augment(policy=TrivialAugment(name="trivial_augment")),
    "cutout": Augment(pad=1, cutout=4),
    "mixup": Augment(flip=True, mixup=0.8),
    "mixup or cutmix": Augment(pad=1, mixup=0.2, cutmix=1.0),
    "views": Augment(pad=2, flip=True, views=2),
}
CROPS = {
    "crops": Augment(resized_crop=ResizedCrop(), flip=True),
    "crops and all else": Augment(
        resized_crop=ResizedCrop(), flip=True, jitter=Jitter(hue=0.2), cutout=3, cutmix=0.5, views=2
    ),
}
AUGMENTS = {**WITHOUT_CROPS, **CROPS}
each = pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
both = pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])


class InMemory:
    """Encoded images in a list."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files
        self.labels = LABELS.numpy()

    def read(self, row: int) -> bytes:
        return self.files[row]

    def where(self, row: int) -> str:
        return f"pictures/{row}.png"


def png(pixels_HWC: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC.numpy()).save(stream, "PNG")
    return stream.getvalue()


PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8))
FILES = [png(each) for each in PIXELS]


def batches(
    augment: Augment | None = None,
    *,
    streamed: bool = True,
    rows: Tensor | None = None,
    files: list[bytes] = FILES,
    batch_size: int = 5,
    workers: int = 0,
    skip: int = 0,
    shard: Shard | None = None,
) -> Batches:
    """The same images from memory or as files; of all of them, or of `rows`."""
    rows = torch.arange(COUNT) if rows is None else rows
    source = InMemory(files) if streamed else PIXELS
    return Batches(
        Images(source, LABELS[rows], rows),
        CARD,
        augment=augment,
        batch_size=batch_size,
        seed=3,
        device="cpu",
        workers=workers,
        skip=skip,
        shard=shard or Shard(0, 1),
    )


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) > 0 and all(map(_equal, one, other))


def _equal(one: Batch, other: Batch) -> bool:
    pairs = [*zip(one[:3], other[:3], strict=True), *zip(one.mixed or (), other.mixed or (), strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("augment", WITHOUT_CROPS.values(), ids=WITHOUT_CROPS)
def test_files_give_what_memory_gives(augment: Augment) -> None:
    """Files are decoded to the very pixels in memory, as they have the right size; resized crops are made otherwise."""
    rows = torch.tensor([20, 3, 11, 8, 1, 22, 7])
    resident, streamed = (batches(augment, streamed=kind, rows=rows) for kind in (False, True))
    assert same(list(resident.epoch(1)), list(streamed.epoch(1)))
    assert same(list(resident.ordered(4)), list(streamed.ordered(4)))
    assert same([resident.of_classes(3, 2)], [streamed.of_classes(3, 2)])


@both
def test_a_split_trains_on_its_own_rows(streamed: bool) -> None:
    rows = torch.tensor([20, 3, 11, 8, 1, 22, 7])
    made = list(batches(Augment(), streamed=streamed, rows=rows).epoch(0))
    assert sorted(torch.cat([batch.indices for batch in made]).tolist()) == list(range(7))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CARD.mean, CARD.std))
    for batch in made:
        expected = (PIXELS[rows[batch.indices]].permute(0, 3, 1, 2) / 255 - mean) / std
        torch.testing.assert_close(batch.image, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(batch.target, LABELS[rows[batch.indices]])


@both
@each
def test_an_epoch_goes_on_where_it_was_left(augment: Augment, streamed: bool) -> None:
    made = batches(augment, streamed=streamed)
    whole = list(made.epoch(2))
    assert len(whole) == len(made) == 5
    for start in (1, 4):
        assert same(list(made.epoch(2, start=start)), whole[start:])
    assert list(made.epoch(2, start=5)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    alone, shared = (batches(CROPS["crops and all else"], workers=count) for count in (0, workers))
    assert same(list(alone.epoch(0)), list(shared.epoch(0)))
    assert same(list(alone.epoch(0, start=3)), list(shared.epoch(0, start=3)))
    assert same(list(alone.ordered(7)), list(shared.ordered(7)))


@both
def test_an_epoch_left_in_the_middle_changes_no_other(streamed: bool) -> None:
    made = batches(AUGMENTS["mixup"], streamed=streamed)
    left = made.epoch(0)
    next(left)
    whole = list(made.epoch(0))
    assert same([next(left)], whole[1:2])


@both
@each
def test_shards_together_are_the_whole_batch(augment: Augment, streamed: bool) -> None:
    whole = list(batches(augment, streamed=streamed).epoch(1))
    shards = [list(batches(augment, streamed=streamed, shard=Shard(rank, 3)).epoch(1)) for rank in range(3)]
    assert len(whole) == len(shards[0])
    for batch, *parts in zip(whole, *shards, strict=True):
        sizes = [len(part.image) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([part.image for part in parts]), batch.image)
        assert all(same([part._replace(image=batch.image)], [batch]) for part in parts)


@both
@each
def test_a_shard_may_have_no_image_of_a_small_last_batch(augment: Augment, streamed: bool) -> None:
    """Of 22 images in batches of 5 the last has 2; of 4 processes two have none of them, unless there are views."""
    rows = torch.arange(22)
    whole = list(batches(augment, streamed=streamed, rows=rows).epoch(1))
    shards = [list(batches(augment, streamed=streamed, rows=rows, shard=Shard(rank, 4)).epoch(1)) for rank in range(4)]
    last = [shard[-1].image for shard in shards]
    assert [len(image) for image in last] == ([1, 1, 1, 1] if augment.views == 2 else [0, 1, 0, 1])
    assert torch.equal(torch.cat(last), whole[-1].image)
    assert {image.shape[1:] for image in last} == {whole[-1].image.shape[1:]}


@both
def test_evaluation_is_sharded_unless_all_is_asked_for(streamed: bool) -> None:
    whole = list(batches().ordered(8))
    assert same(list(batches(streamed=streamed, shard=Shard(2, 3)).ordered(8, whole=True)), whole)
    shards = [list(batches(streamed=streamed, shard=Shard(rank, 3)).ordered(8)) for rank in range(3)]
    for batch, *parts in zip(whole, *shards, strict=True):
        for field in ("image", "target", "indices"):
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))


@both
@pytest.mark.parametrize("crops", [False, True], ids=["shifts", "crops"])
def test_views_are_augmented_each_by_itself(streamed: bool, crops: bool) -> None:
    plain = Augment(resized_crop=ResizedCrop()) if crops else Augment(pad=2, flip=True)
    once, twice = (batches(plain.model_copy(update={"views": n}), streamed=streamed).epoch(0) for n in (1, 2))
    differ = 0
    for single, double in zip(once, twice, strict=True):
        assert torch.equal(double.indices, single.indices.repeat_interleave(2))
        assert torch.equal(double.target, LABELS[double.indices])
        assert len(double.image) == 2 * len(single.image)
        differ += sum(not torch.equal(one, other) for one, other in double.image.view(-1, 2, 3, SIDE, SIDE))
    assert differ > 15


def test_crops_of_files_are_cut_from_the_whole_picture() -> None:
    """A picture larger than the side, left half black, right half white: crops show either or both."""
    halves = np.zeros((30, 60, 3), np.uint8)
    halves[:, 30:] = 255
    small = Augment(resized_crop=ResizedCrop(scale=(0.02, 0.02)))
    made = batches(small, files=[png(torch.from_numpy(halves))] * COUNT)
    image = torch.cat([batch.image for batch in made.epoch(0)])
    mean_N = image.mean((1, 2, 3))
    assert len(mean_N.unique()) > 2
    assert {float(mean_N.min()), float(mean_N.max())} == {
        float(image[n].mean()) for n in (mean_N.argmin(), mean_N.argmax())
    }


# Images that are left out


def spoilt(*rows: int) -> list[bytes]:
    return [b"broken" if row in rows else file for row, file in enumerate(FILES)]


@pytest.mark.parametrize("augment", [*WITHOUT_CROPS.values()][:6], ids=[*WITHOUT_CROPS][:6])
def test_what_is_left_of_a_batch_is_what_it_would_have_been(augment: Augment) -> None:
    whole, left = list(batches(augment).epoch(0)), list(batches(augment, files=spoilt(4, 17), skip=2).epoch(0))
    assert sum(len(batch.target) for batch in left) == COUNT - 2
    for before, after in zip(whole, left, strict=True):
        keep_B = (before.indices != 4) & (before.indices != 17)
        assert same([Batch(before.image[keep_B], before.target[keep_B], before.indices[keep_B])], [after])


def test_mixed_images_are_mixed_with_what_is_left() -> None:
    for batch in batches(AUGMENTS["mixup"], files=spoilt(4, 17), skip=2).epoch(0):
        assert not {4, 17} & set(batch.indices.tolist())
        assert len(batch.image) == len(batch.target) == len(batch.indices) == len(batch.mixed.target)


def test_evaluation_leaves_out_the_same() -> None:
    made = batches(files=spoilt(0, 9), skip=2)
    left = list(made.ordered(10))
    kept = [row for row in range(COUNT) if row not in (0, 9)]
    assert torch.cat([batch.indices for batch in left]).tolist() == kept
    assert torch.equal(torch.cat([batch.target for batch in left]), LABELS[kept])
    assert torch.equal(torch.cat([batch.image for batch in left]), next(batches().ordered(COUNT)).image[kept])


def test_evaluation_takes_what_is_left_of_a_batch_be_it_one_or_none() -> None:
    """Of 23 images in batches of 3 the first is left with one, the second and the last with none."""
    left = list(batches(files=spoilt(0, 1, 3, 4, 5, 21, 22), skip=7).ordered(3))
    kept = [2, *range(6, 21)]
    assert [len(batch.indices) for batch in left] == [1, 3, 3, 3, 3, 3]
    assert torch.cat([batch.indices for batch in left]).tolist() == kept
    assert torch.equal(torch.cat([batch.image for batch in left]), next(batches().ordered(COUNT)).image[kept])


@pytest.mark.parametrize("good", [0, 1])
def test_training_refuses_fewer_than_two_images(good: int) -> None:
    made = batches(files=spoilt(*range(good, COUNT)), batch_size=COUNT, skip=COUNT)
    message = r"so many of a batch's 23 images are unreadable .* fewer than two are left.*verify.*larger batches"
    with pytest.raises(DataError, match=message):
        list(made.epoch(0))


def test_evaluation_refuses_images_that_are_all_unreadable() -> None:
    assert batches(files=spoilt(0, 1), skip=2).of_classes(2, 1).indices.tolist() == [3]
    with pytest.raises(DataError, match=r"none of the images .* can be read\. Mend .*otkd data verify"):
        batches(files=spoilt(0, 3), skip=2).of_classes(2, 1)
    with pytest.raises(DataError, match="none of the images"):
        list(batches(files=spoilt(*range(COUNT)), skip=COUNT).ordered(5))


def test_shards_leave_nothing_out_unless_they_read_all() -> None:
    shards = [batches(files=spoilt(4), batch_size=11, skip=1, shard=Shard(rank, 3)) for rank in range(3)]
    with pytest.raises(DataError, match=r"processes share every batch.*otkd data verify.*gpus_per_trial: 1"):
        [list(each.epoch(0)) for each in shards]
    mixed = [batches(AUGMENTS["mixup"], files=spoilt(4), skip=1, shard=Shard(rank, 3)) for rank in range(3)]
    whole = batches(AUGMENTS["mixup"], files=spoilt(4), skip=1)
    for batch, *parts in zip(whole.epoch(0), *(each.epoch(0) for each in mixed), strict=True):
        assert torch.equal(torch.cat([part.image for part in parts]), batch.image)


def test_no_more_than_skip(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"pictures/\d+.png: unreadable image .* 1 before it have been left out"):
        list(batches(files=spoilt(4, 17), skip=1).epoch(0))
    assert len([record for record in caplog.records if record.name.startswith("otkd")]) == 1


def test_grey_files() -> None:
    card = replace(CARD, channels=1, mean=(0.5,), std=(0.5,))
    made = Batches(
        Images(InMemory(FILES), LABELS, torch.arange(COUNT)), card, augment=None, batch_size=5, seed=0, device="cpu"
    )
    assert next(made.epoch(0)).image.shape == (5, 1, SIDE, SIDE)
