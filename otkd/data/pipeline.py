"""From a data set's name to what a trial trains on, selects by and is tested on: load, limit, hold out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from otkd.core import trial
from otkd.core.cards import DataCard
from otkd.core.datasets import Found, request_for, survey
from otkd.core.errors import DataError, OtkdError
from otkd.core.seeds import derive
from otkd.data import cache
from otkd.data.source import Arrays, Encoded
from otkd.data.subset import Rows, balanced, proportional


class Images(NamedTuple):
    """Images of one split."""

    source: Tensor | Encoded
    """(M, H, W, C), uint8, or images that are decoded as they are needed: a whole training or test set."""
    labels: Tensor
    """(N,), int64"""
    indices: Tensor
    """(N,), int64: the row of each in `source`"""


class Splits(NamedTuple):
    """What a trial trains on, selects by and is tested on."""

    train: Images
    val: Images | None
    test: Images
    card: DataCard


def prepare(config: trial.Data, *, data_dir: Path | None, cache_dir: Path) -> Splits:
    """Load a data set, take its `limit`, then hold out `val`.

    Args:
        config: name, options, limit, val and split seed.
        data_dir: the user's data folder (OTKD_DATA_DIR), or None.
        cache_dir: our folder for decoded images, indexes and downloads.

    Raises:
        DataError: the images cannot be had, or are not those that `config` was made for.
        OtkdError: `limit` or `val` is impossible for this data set.
    """
    _expect_the_surveyed(config, data_dir, cache_dir)
    card, request = config.card, request_for(config, data_dir, cache_dir)
    raw = cache.index(request, card) if card.streamed else cache.load(request, card)
    train, val = split(raw.train.labels, config, card)
    held_out = _images(raw.train, val) if len(val) else None
    return Splits(_images(raw.train, train), held_out, _images(raw.test, np.arange(card.test)), card)


def _expect_the_surveyed(config: trial.Data, data_dir: Path | None, cache_dir: Path) -> None:
    """A set of the user's own is the one that was looked at when its trials were planned."""
    now = survey(config, data_dir, cache_dir)
    if now == config:
        return
    then, there = (Found.model_validate(data.options["found"]) for data in (config, now))
    if not then.digest:
        raise DataError(
            f"{config.name}: nobody has looked at its files yet; pass the data through otkd.core.datasets.survey."
        )
    raise DataError(
        f"{config.name} has changed since it was planned: {then.train:,} training and {then.test:,} test images of "
        f"{then.classes} classes then, {there.train:,} and {there.test:,} of {there.classes} now. Run the same command "
        "again to plan with what is there, or bring the files back."
    )


def split(labels: Rows, config: trial.Data, card: DataCard) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out for validation, both ascending.

    Args:
        labels: (N,) of the full training set.
        config: limit, val and split seed.
        card: says how many classes there are.

    Raises:
        OtkdError: `limit` or `val` is impossible.
    """
    rows = np.arange(len(labels))
    if config.limit is not None:
        if config.limit > len(rows):
            raise OtkdError(
                f"data.limit: {config.limit:,} is more than the {len(rows):,} training images of {config.name}."
            )
        rows = balanced(labels, config.limit, derive(config.split_seed, "limit"))
    count = _val_count(config.val, len(rows))
    val = rows[proportional(labels[rows], count, derive(config.split_seed, "split"))]
    train = np.setdiff1d(rows, val, assume_unique=True)
    missing = card.classes - len(np.unique(labels[train]))
    if missing:
        raise OtkdError(
            f"data: {len(train)} training images (limit {config.limit}, val {config.val:g}) leave {missing} of the "
            f"{card.classes} classes of {config.name} without one. Raise data.limit or lower data.val."
        )
    return train, val


def _val_count(val: float, train: int) -> int:
    if 0 < val < 1:
        count = round(val * train)
        if count == 0:
            raise OtkdError(
                f"data.val: a share of {val:g} of {train:,} training images is none. Give a larger share, or 0."
            )
    elif val == int(val):
        count = int(val)
    else:
        raise OtkdError(f"data.val: {val:g} is neither a share below 1 nor a whole number of images.")
    if count >= train:
        raise OtkdError(f"data.val: holding out {count:,} of {train:,} training images leaves none to train on.")
    return count


def _images(raw: Arrays | Encoded, rows: Rows) -> Images:
    source = torch.from_numpy(raw.images) if isinstance(raw, Arrays) else raw
    return Images(source, torch.from_numpy(raw.labels[rows]), torch.from_numpy(rows))
