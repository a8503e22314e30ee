"""Computed images: the same everywhere, spread as the card says, and neither trivial nor hopeless."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from otkd.core.datasets import Request, card, configure
from otkd.core.errors import OtkdError
from otkd.data.source import Arrays, RawSplits, check
from otkd.data.synthetic import Options, read


def images(**options: object) -> RawSplits:
    return read(Request("synthetic", Options(**options), None, Path()))


def linear_accuracy(raw: RawSplits) -> float:
    def flat(split: Arrays) -> np.ndarray:
        return split.images.reshape(len(split.images), -1) / 127.5 - 1

    fitted = RidgeClassifier(alpha=100).fit(flat(raw.train), raw.train.labels)
    return float(fitted.score(flat(raw.test), raw.test.labels))


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 7, "channels": 1, "side": 9, "train": 75, "test": 13},
        {"classes": 2, "side": 4, "train": 700, "test": 1},
        {"classes": 3, "side": 13, "train": 500, "test": 100, "noise": 0.0},
        {"classes": 3, "side": 11, "train": 500, "test": 100, "noise": 1.0},
    ],
)
def test_as_the_card_says(options: dict[str, object]) -> None:
    raw, made = images(**options), card("synthetic", configure("synthetic", options))
    check("synthetic", raw, made)
    pixels = raw.train.images / 255
    assert pixels.mean((0, 1, 2)) == pytest.approx(made.mean, abs=5e-3)
    assert pixels.std((0, 1, 2)) == pytest.approx(made.std, abs=5e-3)


def test_the_same_on_every_machine() -> None:
    """Truth: the images of the machine that they were first made on."""
    raw = images(train=37, test=11, side=9)
    pixels = raw.train.images.tobytes() + raw.test.images.tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "0d68913b510d379d7c93888c0cf225bf241be34cdb4c53f2c3499155c7d3a5cb"


def test_classes_are_of_one_size() -> None:
    raw = images(classes=4, train=22, test=9)
    assert np.bincount(raw.train.labels).tolist() == [6, 6, 5, 5]
    assert np.bincount(raw.test.labels).tolist() == [3, 2, 2, 2]


def test_test_images_do_not_depend_on_the_training_set() -> None:
    few, many = images(train=20, side=8), images(train=77, side=8)
    assert np.array_equal(few.test.images, many.test.images)


def test_learnable_but_not_trivial() -> None:
    assert 0.5 < linear_accuracy(images(side=16)) < 0.9


def test_noise_makes_it_harder() -> None:
    easy, hard, hopeless = (linear_accuracy(images(side=8, noise=noise)) for noise in (0.2, 0.7, 1.0))
    assert easy > hard + 0.2
    assert hopeless < 0.2


def test_without_noise_an_image_is_its_pattern_shifted() -> None:
    raw = images(classes=2, channels=1, side=12, train=40, test=2, noise=0.0)
    first, others = raw.train.images[0, :, :, 0], raw.train.images[2::2, :, :, 0]
    shifts = [(y, x) for y in range(12) for x in range(12)]
    rolled = {np.roll(first, shift, (0, 1)).tobytes() for shift in shifts}
    assert {image.tobytes() for image in others} <= rolled
    assert len({image.tobytes() for image in others}) > 5


@pytest.mark.parametrize(
    "options",
    [{"classes": 1}, {"channels": 2}, {"side": 3}, {"noise": 1.5}, {"noise": -0.1}, {"train": 9}, {"test": 0}],
)
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises((OtkdError, ValueError), match=next(iter(options))):
        configure("synthetic", options)
