"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8 × 8 pixels (Alpaydin & Kaynak, UCI 1998).

They have no official split; ours holds out 50 of each digit for testing, always the same ones. Needs neither files nor
a network, which is why `make demo` uses it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.datasets import Request
from otkd.core.seeds import derive
from otkd.data.source import Arrays, RawSplits
from otkd.data.subset import balanced

CARD = DataCard(
    classes=10,
    channels=1,
    side=8,
    train=1297,
    test=500,
    mean=(0.3057,),
    std=(0.3763,),
    augment=Augment(pad=1),
    about="8 × 8 grey digits that ship with scikit-learn; for trying things out in seconds",
)


def sources(request: Request) -> list[Path]:
    """No files: the images come with scikit-learn."""
    return []


def read(request: Request) -> RawSplits:
    """The images, their 17 grey levels spread over 0 … 255."""
    from sklearn.datasets import load_digits  # slow to import, and needed once: the result is cached

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    test = balanced(labels, CARD.test, derive(0, "digits/test"))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return RawSplits(Arrays(images[train], labels[train]), Arrays(images[test], labels[test]))
