"""CIFAR-100 (Krizhevsky, 2009): 60,000 colour images of 32 × 32 pixels in 100 classes.

Read from whichever is there: parquet files as in the Hugging Face data set `uoft-cs/cifar100`, the `cifar-100-python`
folder of the original distribution, or a download of the latter. Mean, standard deviation and augmentation are those of
RepDistiller (Tian et al., ICLR 2020).
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from otkd.core.cards import Augment, DataCard
from otkd.core.errors import DataError
from otkd.data.parquet import read_parquet
from otkd.data.pickles import read_plain_pickle
from otkd.data.source import Arrays, RawSplits

CARD = DataCard(
    classes=100,
    channels=3,
    side=32,
    train=50_000,
    test=10_000,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    augment=Augment(pad=4, flip=True),
    about="32 × 32 colour photographs in 100 classes; the usual benchmark of distillation",
)

log = logging.getLogger(__name__)

ORIGINAL = "cifar-100-python"
"""The folder of the original distribution."""
TIMEOUT = 30
"""Seconds without an answer after which a download has failed."""


class Found(NamedTuple):
    """The files of both splits, and which of the two layouts they are in."""

    train: list[Path]
    test: list[Path]
    parquet: bool


def sources(data_dir: Path | None, download_to: Path) -> list[Path]:
    """The files that `read` would read; none when it would download them."""
    found = _find(data_dir, download_to)
    return [*found.train, *found.test] if found else []


def read(data_dir: Path | None, download_to: Path) -> RawSplits:
    """Every image, from the first layout that is there, else from a download.

    Raises:
        DataError: the files are damaged, or there are none and the download fails; names every way to get them.
    """
    found = _find(data_dir, download_to)
    if found is None:
        _download(data_dir, download_to)
        found = _find(None, download_to)
        assert found is not None
    if found.parquet:
        return RawSplits(*(read_parquet(files, "img", "fine_label", CARD) for files in (found.train, found.test)))
    return RawSplits(*(_read_original(files[0]) for files in (found.train, found.test)))


def _find(data_dir: Path | None, download_to: Path) -> Found | None:
    """`data_dir` may be the folder of data sets or, one level deeper, the folder of this one."""
    parquet = [data_dir / "cifar100", data_dir] if data_dir else []
    original = [folder / ORIGINAL for folder in parquet] + [download_to / ORIGINAL]
    if data_dir and data_dir.name == ORIGINAL:
        original.insert(0, data_dir)
    return next(filter(None, [*map(_find_parquet, parquet), *map(_find_original, original)]), None)


def _find_parquet(folder: Path) -> Found | None:
    train, test = (sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "test"))
    if bool(train) != bool(test):
        there, missing = ("train", "test") if train else ("test", "train")
        raise DataError(f"{folder} has {there}-*.parquet but no {missing}-*.parquet; both are needed.")
    return Found(train, test, parquet=True) if train else None


def _find_original(folder: Path) -> Found | None:
    train, test = folder / "train", folder / "test"
    if train.is_file() != test.is_file():
        raise DataError(f"{folder} has only one of the files train and test; both are needed.")
    return Found([train], [test], parquet=False) if train.is_file() else None


def _read_original(file: Path) -> Arrays:
    content = read_plain_pickle(file)
    try:
        images_NCHW = np.asarray(content["data"]).reshape(-1, CARD.channels, CARD.side, CARD.side)
        labels = np.asarray(content["fine_labels"], dtype=np.int64)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{file}: not CIFAR-100's data and fine_labels ({error!r}). Get the file anew.") from error
    return Arrays(np.ascontiguousarray(images_NCHW.transpose(0, 2, 3, 1)), labels)


def _download(data_dir: Path | None, download_to: Path) -> None:
    """Fetch the original distribution into `download_to`: whole, or not at all."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    log.warning("cifar100: nothing under %s; downloading 170 MB from %s", data_dir or "OTKD_DATA_DIR", CIFAR100.url)
    partial = download_to / f".{ORIGINAL}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with _network_timeout(TIMEOUT):
            download_and_extract_archive(CIFAR100.url, partial, md5=CIFAR100.tgz_md5)
        shutil.rmtree(download_to / ORIGINAL, ignore_errors=True)
        (partial / ORIGINAL).replace(download_to / ORIGINAL)
    except Exception as error:  # no network, a proxy's page, a full disk: the ways out are the same
        raise DataError(_ways_out(data_dir, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _ways_out(data_dir: Path | None, error: Exception) -> str:
    looked = f"under {data_dir}" if data_dir else "(no data folder was named)"
    return (
        f"cifar100: no images {looked}, and downloading them failed ({error}). Either name a data folder "
        f"(--data-dir folder, DATA=folder for make, or OTKD_DATA_DIR=folder) that has\n"
        f"  - cifar100/train-*.parquet and cifar100/test-*.parquet, as in Hugging Face's uoft-cs/cifar100, or\n"
        f"  - {ORIGINAL}/train and {ORIGINAL}/test, as in the original archive,\n"
        f"or run where the download works, or try `make demo`, which needs no data."
    )


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
