"""Every data set that needs no data folder, against its card; a new one inherits these tests."""

from pathlib import Path

import numpy as np
import pytest

from otkd.core import plugins
from otkd.core.trial import Data
from otkd.data import cache
from otkd.data.pipeline import Batches, prepare

NEEDS_FILES = {"cifar100", "svhn", "imagenet"}
"""Data sets that come from a data folder or a download; each has a test of its own."""

every_set = pytest.mark.parametrize("name", sorted(set(plugins.names("data")) - NEEDS_FILES))


@every_set
def test_images_are_what_the_card_says(name: str, cached: Path) -> None:
    card = plugins.cards("data")[name]
    raw = cache.load(name, data_dir=None, cache_dir=cached)
    for arrays, count in ((raw.train, card.train), (raw.test, card.test)):
        assert arrays.images.shape == (count, card.side, card.side, card.channels)
        assert arrays.images.dtype == np.uint8
        assert arrays.labels.shape == (count,)
        assert arrays.labels.dtype == np.int64
        assert np.unique(arrays.labels).tolist() == list(range(card.classes))
    assert card.about


@every_set
def test_card_statistics_are_those_of_the_training_images(name: str, cached: Path) -> None:
    card = plugins.cards("data")[name]
    pixels = cache.load(name, data_dir=None, cache_dir=cached).train.images.reshape(-1, card.channels) / 255
    assert pixels.mean(0) == pytest.approx(card.mean, abs=2e-3)
    assert pixels.std(0) == pytest.approx(card.std, abs=2e-3)


@every_set
def test_reading_twice_gives_the_same(name: str, tmp_path: Path) -> None:
    plugin = plugins.load("data", name)
    one, other = plugin.read(None, tmp_path), plugin.read(None, tmp_path)
    assert np.array_equal(one.train.images, other.train.images)
    assert np.array_equal(one.test.labels, other.test.labels)


@every_set
def test_train_and_test_share_no_image(name: str, cached: Path) -> None:
    raw = cache.load(name, data_dir=None, cache_dir=cached)
    train, test = ({image.tobytes() for image in split.images} for split in (raw.train, raw.test))
    assert not train & test


@every_set
def test_first_batch(name: str, cached: Path) -> None:
    data = prepare(Data(name=name, limit=50, val=0.2), data_dir=None, cache_dir=cached)
    batches = Batches(data.train, data.card, augment=None, batch_size=16, seed=0, device="cpu")
    batch = next(batches.epoch(0))
    assert batch.image.shape == (16, data.card.channels, data.card.side, data.card.side)
    assert batch.image.isfinite().all()


def test_heads_need_no_torch() -> None:
    """Planning reads cards without importing the plug-ins."""
    assert {"digits", "cifar100"} <= set(plugins.cards("data"))


def test_digits_test_set_is_balanced(cached: Path) -> None:
    raw = cache.load("digits", data_dir=None, cache_dir=cached)
    assert np.bincount(raw.test.labels).tolist() == [50] * 10
    assert set(np.unique(raw.train.images)) <= set(np.rint(np.arange(17) * 255 / 16).astype(int))
