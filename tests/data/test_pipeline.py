"""Limit and split; order, augmentation and normalisation of batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.errors import OtkdError
from otkd.core.output import Batch
from otkd.core.seeds import derive
from otkd.core.trial import Data
from otkd.data.augment import draw
from otkd.data.batches import Batches
from otkd.data.crops import shift_and_flip
from otkd.data.pipeline import Images, prepare, split

CARD = DataCard(
    classes=5,
    channels=3,
    side=7,
    train=53,
    test=0,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    augment=Augment(pad=2, flip=True),
    about="made up",
)
PLAIN = Augment()


def images(count: int = 53, side: int = 7, channels: int = 3) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, side, side, channels), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 5, torch.arange(count))


def batches(data: Images | None = None, augment: Augment | None = None, batch_size: int = 16, seed: int = 0) -> Batches:
    return Batches(data or images(), CARD, augment=augment, batch_size=batch_size, seed=seed, device="cpu")


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left[:3], right[:3], strict=True)
    )


def normalise(pixels_BCHW: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CARD.mean, CARD.std))
    return (pixels_BCHW / 255 - mean) / std


# Limit and split


def labels(count: int = 200, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(count) % classes)


def test_everything_without_limit_and_val() -> None:
    train, val = split(labels(), Data(name="x"), CARD)
    assert train.tolist() == list(range(200))
    assert not len(val)


@pytest.mark.parametrize(("val", "count"), [(50, 50), (0.25, 50), (0.1, 20)])
def test_val_is_stratified_and_disjoint(val: float, count: int) -> None:
    train, held_out = split(labels(), Data(name="x", val=val), CARD)
    assert np.bincount(labels()[held_out]).tolist() == [count // 5] * 5
    assert sorted([*train, *held_out]) == list(range(200))


def test_limit_is_balanced_and_comes_first() -> None:
    train, val = split(labels(), Data(name="x", limit=100, val=20), CARD)
    assert np.bincount(labels()[train]).tolist() == [16] * 5
    assert np.bincount(labels()[val]).tolist() == [4] * 5
    whole, _ = split(labels(), Data(name="x", limit=100), CARD)
    assert sorted([*train, *val]) == whole.tolist()


def test_split_seed_decides() -> None:
    one, again, other = (split(labels(), Data(name="x", val=50, split_seed=s), CARD)[1] for s in (0, 0, 1))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 201}, r"data\.limit: 201 is more than the 200"),
        ({"val": 200}, r"data\.val: holding out 200 of 200"),
        ({"val": 5000}, r"data\.val: holding out 5,000 of 200"),
        ({"limit": 50, "val": 50}, r"data\.val: holding out 50 of 50"),
        ({"val": 0.999}, "holding out 200 of 200"),
        ({"val": 0.0001}, "a share of 0.0001 of 200 training images is none"),
        ({"val": 2.5}, "neither a share below 1 nor a whole number"),
        ({"limit": 3}, "leave 2 of the 5 classes of x without one"),
        ({"val": 198}, "leave 3 of the 5 classes of x without one"),
    ],
)
def test_impossible_splits(options: dict[str, float], message: str) -> None:
    with pytest.raises(OtkdError, match=message):
        split(labels(), Data(name="x", **options), CARD)


def test_prepare(cached: Path) -> None:
    whole = prepare(Data(name="digits"), data_dir=None, cache_dir=cached)
    part = prepare(Data(name="digits", limit=200, val=0.2), data_dir=None, cache_dir=cached)
    assert whole.val is None
    assert part.val is not None
    assert [len(s.labels) for s in (whole.train, whole.test, part.train, part.val)] == [1297, 500, 160, 40]
    assert part.train.labels.bincount().tolist() == [16] * 10
    for piece in (part.train, part.val):
        assert torch.equal(torch.as_tensor(whole.train.source), torch.as_tensor(piece.source))
        assert torch.equal(whole.train.labels[piece.indices], piece.labels)
    assert not set(part.train.indices.tolist()) & set(part.val.indices.tolist())


# Batches


def test_same_seed_same_batches() -> None:
    state = torch.get_rng_state()
    torch.manual_seed(1)
    one = list(batches().epoch(3))
    torch.manual_seed(2)
    assert same(one, list(batches().epoch(3)))
    torch.set_rng_state(state)
    for epoch, stage, seed in ((4, "train", 0), (3, "hint", 0), (3, "train", 1)):
        assert not same(one, list(batches(seed=seed).epoch(epoch, stage)))


def test_batches_leave_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    list(batches().epoch(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_epoch_visits_every_image_once() -> None:
    visited = list(batches().epoch(0))
    index = torch.cat([batch.indices for batch in visited])
    assert sorted(index.tolist()) == list(range(53))
    assert index.tolist() != sorted(index.tolist())
    assert torch.equal(torch.cat([batch.target for batch in visited]), index % 5)
    assert [len(batch.target) for batch in visited] == [16, 16, 16, 5]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(33, 16, [16, 16]), (34, 16, [16, 16, 2]), (32, 16, [16, 16])]
)
def test_single_last_image_is_left_out(count: int, batch_size: int, sizes: list[int]) -> None:
    made = batches(images(count), batch_size=batch_size)
    assert len(made) == len(sizes)
    assert [len(batch.target) for batch in made.epoch(0)] == sizes
    assert sum(len(batch.target) for batch in made.ordered(batch_size)) == count


@pytest.mark.parametrize("augment", [Augment(pad=2, flip=True), Augment(pad=3), Augment(flip=True), PLAIN, None])
def test_augmentation_is_the_slow_one(augment: Augment | None) -> None:
    """Truth: pad, slice and flip one image at a time, given the same draws."""
    data, used = images(), augment or CARD.augment
    seen = 0
    for step, batch in enumerate(batches(data, augment).epoch(2)):
        generator = torch.Generator().manual_seed(derive(0, "augment/train/2", step))
        draws = draw(len(batch.indices), used, generator)
        for place, index in enumerate(batch.indices.tolist()):
            padded = F.pad(data.source[index].permute(2, 0, 1), (used.pad,) * 4)
            dy, dx = draws.offset_B2[place].tolist()
            crop = padded[:, dy : dy + 7, dx : dx + 7]
            expected = crop.flip(-1) if draws.flip_B[place] else crop
            torch.testing.assert_close(batch.image[place], normalise(expected), rtol=1e-5, atol=1e-5)
            seen += 1
    assert seen == 53


def test_gather_on_an_oblong_image() -> None:
    pixels_BHWC = torch.arange(2 * 3 * 5, dtype=torch.uint8).view(2, 3, 5, 1)
    offset_B2, flip_B = torch.tensor([[0, 2], [2, 1]]), torch.tensor([False, True])
    out = shift_and_flip(pixels_BHWC, offset_B2, flip_B, pad=1)[..., 0]
    assert out[0].tolist() == [[0, 0, 0, 0, 0], [1, 2, 3, 4, 0], [6, 7, 8, 9, 0]]
    assert out[1].tolist() == [[24, 23, 22, 21, 20], [29, 28, 27, 26, 25], [0, 0, 0, 0, 0]]


def test_draws_cover_their_range() -> None:
    draws = draw(2000, Augment(pad=2, flip=True), torch.Generator().manual_seed(0))
    assert draws.offset_B2.unique().tolist() == [0, 1, 2, 3, 4]
    assert 0.45 < draws.flip_B.float().mean() < 0.55
    assert not draw(50, Augment(pad=2), torch.Generator()).flip_B.any()


def test_ordered_is_plain() -> None:
    data = images()
    made = list(batches(data).ordered(20))
    image = torch.cat([batch.image for batch in made])
    torch.testing.assert_close(image, normalise(data.source.permute(0, 3, 1, 2)), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat([batch.target for batch in made]), data.labels)
    assert torch.equal(torch.cat([batch.indices for batch in made]), torch.arange(53))


def test_images_are_float32_channels_last_and_own_their_memory() -> None:
    data = images()
    before = data.source.clone()
    for batch in (*batches(data).epoch(0), *batches(data).ordered(16)):
        assert batch.image.dtype == torch.float32
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        batch.image.zero_()
    assert torch.equal(data.source, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_the_same_on_a_gpu() -> None:
    on_gpu = Batches(images(), CARD, augment=None, batch_size=16, seed=0, device="cuda")
    moved = [Batch(*(part.cpu() for part in batch[:3])) for batch in on_gpu.epoch(0)]
    assert same(list(batches().epoch(0)), moved)
