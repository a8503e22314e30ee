"""Every data set against its card, with all images where it needs no data folder; a new one inherits these tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otkd.core import plugins
from otkd.core.datasets import request_for, surveyed
from otkd.core.errors import DataError
from otkd.core.trial import Data
from otkd.data import cache
from otkd.data.batches import Batches
from otkd.data.pipeline import prepare
from otkd.data.source import RawSplits

DOWNLOADED = {
    "cifar10": (10, 3, 32, 50_000, 10_000),
    "cifar100": (100, 3, 32, 50_000, 10_000),
    "svhn": (10, 3, 32, 73_257, 26_032),
    "fashion_mnist": (10, 1, 28, 60_000, 10_000),
    "tiny_imagenet": (200, 3, 64, 100_000, 10_000),
}
"""Classes, channels, side, training and test images, as published."""
NEEDS_FILES = {*DOWNLOADED, "imagenet"}
"""Data sets that come from a data folder or a download; each has a test file of its own."""


def load(name: str, cached: Path) -> RawSplits:
    data = Data(name=name)
    return cache.load(request_for(data, None, cached), data.card)


WITHOUT_FILES = [name for name in plugins.names("data") if name not in NEEDS_FILES and not surveyed(name)]
every_set = pytest.mark.parametrize("name", WITHOUT_FILES)


@every_set
def test_images_are_what_the_card_says(name: str, cached: Path) -> None:
    card = plugins.head("data", name).CARD
    raw = load(name, cached)
    for arrays, count in ((raw.train, card.train), (raw.test, card.test)):
        assert arrays.images.shape == (count, card.side, card.side, card.channels)
        assert arrays.images.dtype == np.uint8
        assert arrays.labels.shape == (count,)
        assert arrays.labels.dtype == np.int64
        assert np.unique(arrays.labels).tolist() == list(range(card.classes))
    assert card.about


@every_set
def test_card_statistics_are_those_of_the_training_images(name: str, cached: Path) -> None:
    card = plugins.head("data", name).CARD
    pixels = load(name, cached).train.images.reshape(-1, card.channels) / 255
    assert pixels.mean(0) == pytest.approx(card.mean, abs=2e-3)
    assert pixels.std(0) == pytest.approx(card.std, abs=2e-3)


@every_set
def test_reading_twice_gives_the_same(name: str, tmp_path: Path) -> None:
    plugin, request = plugins.load("data", name), request_for(Data(name=name), None, tmp_path)
    one, other = plugin.read(request), plugin.read(request)
    assert np.array_equal(one.train.images, other.train.images)
    assert np.array_equal(one.test.labels, other.test.labels)


@every_set
def test_train_and_test_share_no_image(name: str, cached: Path) -> None:
    raw = load(name, cached)
    train, test = ({image.tobytes() for image in split.images} for split in (raw.train, raw.test))
    assert not train & test


@every_set
def test_first_batch(name: str, cached: Path) -> None:
    data = prepare(Data(name=name, limit=50, val=0.2), data_dir=None, cache_dir=cached)
    batches = Batches(data.train, data.card, augment=None, batch_size=16, seed=0, device="cpu")
    batch = next(batches.epoch(0))
    assert batch.image.shape == (16, data.card.channels, data.card.side, data.card.side)
    assert batch.image.isfinite().all()


@pytest.mark.parametrize("name", sorted(DOWNLOADED))
def test_cards_have_the_published_counts(name: str) -> None:
    card = plugins.head("data", name).CARD
    assert (card.classes, card.channels, card.side, card.train, card.test) == DOWNLOADED[name]
    assert len(card.mean) == len(card.std) == card.channels
    assert all(0 < std < 0.5 for std in card.std), "0.5 is the most that numbers from 0 to 1 can have"
    assert card.about
    assert len(set(card.names)) in (0, card.classes)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", sorted(DOWNLOADED))
def test_without_files_every_layout_is_named(name: str, ask: Any, tmp_path: Path) -> None:
    plugin, request = plugins.load("data", name), ask(name, None)
    assert plugin.sources(request) == []
    with pytest.raises(DataError, match=rf"{name}: no images \(no data folder was named\).*no route to host") as caught:
        plugin.read(request)
    origin = plugin._origin(request.options) if name == "svhn" else plugin.ORIGIN
    assert origin.name == name
    for layout in origin.layouts:
        for text in (layout.about, layout.folders[0] or name, *layout.train, *layout.test):
            assert text in str(caught.value)


@pytest.mark.parametrize("name", sorted(DOWNLOADED))
def test_real_images_have_the_statistics_of_the_card(name: str, tmp_path: Path) -> None:
    """Truth: the images themselves, where `OTKD_DATA_DIR` has them."""
    data_dir = Path(os.environ["OTKD_DATA_DIR"]) if os.environ.get("OTKD_DATA_DIR") else None
    data = Data(name=name)
    request = request_for(data, data_dir, tmp_path)
    if name == "cifar100" or not plugins.load("data", name).sources(request):
        pytest.skip("OTKD_DATA_DIR has no such images, or they have a test of their own")
    pixels = cache.load(request, data.card).train.images[::7].reshape(-1, data.card.channels)
    assert pixels.mean(0) / 255 == pytest.approx(data.card.mean, abs=2e-3)
    assert pixels.std(0) / 255 == pytest.approx(data.card.std, abs=2e-3)


def test_plugins_need_no_torch() -> None:
    """Planning reads heads, and may load whole plug-ins. In a process of its own, because this one has torch."""
    code = (
        "import sys; from otkd.core import plugins; found = plugins.names('data');"
        "[(plugins.head('data', name), plugins.load('data', name)) for name in found];"
        "print(*found); print(*sorted({'torch', 'torchvision', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    found, heavy = done.stdout.splitlines()
    assert {"digits", *DOWNLOADED} <= set(found.split())
    assert heavy == ""


def test_digits_test_set_is_balanced(cached: Path) -> None:
    raw = load("digits", cached)
    assert np.bincount(raw.test.labels).tolist() == [50] * 10
    assert set(np.unique(raw.train.images)) <= set(np.rint(np.arange(17) * 255 / 16).astype(int))
