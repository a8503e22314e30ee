"""Tiny-ImageNet from a small folder of the official layout."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from otkd.core.errors import DataError
from otkd.data import tiny_imagenet
from otkd.data.source import RawSplits

WNIDS = ["n03", "n01", "n02"]
"""Not sorted, as in the official file."""
TRAIN, TEST = 2, 4


def picture(file: Path, level: int, mode: str = "RGB", side: int = 64) -> None:
    """A JPEG of one colour, which it keeps up to rounding."""
    colour = (level, 255 - level, 40) if mode == "RGB" else level
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), colour).save(file, "JPEG", quality=95)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `tiny-imagenet-200`: two training images of each of three classes, four for validation."""
    card = replace(tiny_imagenet.CARD, classes=3, train=TRAIN * len(WNIDS), test=TEST)
    monkeypatch.setattr(tiny_imagenet, "CARD", card)
    root = tmp_path / "data" / "tiny-imagenet-200"
    for place, wnid in enumerate(WNIDS):
        for number in range(TRAIN):
            picture(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 60 * place + 20 * number)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("not read")
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    for number in range(TEST):
        picture(root / "val" / "images" / f"val_{number}.JPEG", 50 * number)
    annotate(root, ["val_2.JPEG\tn01", "val_0.JPEG\tn03", "val_3.JPEG\tn02", "val_1.JPEG\tn03"])
    picture(root / "test" / "images" / "test_0.JPEG", 0)
    return root


def annotate(root: Path, lines: list[str]) -> None:
    (root / "val" / "val_annotations.txt").write_text("".join(f"{line}\t0\t32\t44\t62\n" for line in lines))


@pytest.fixture
def read(ask: Any, root: Path) -> Any:
    def go(data_dir: Path = root.parent) -> RawSplits:
        return tiny_imagenet.read(ask("tiny_imagenet", data_dir))

    return go


def reds(images_NHWC: np.ndarray) -> np.ndarray:
    assert images_NHWC.shape[1:] == (64, 64, 3)
    assert images_NHWC.dtype == np.uint8
    assert np.ptp(images_NHWC.astype(int), axis=(1, 2)).max() <= 1
    return images_NHWC[:, 11, 50, 0].astype(int)


def test_classes_are_sorted_and_images_in_order(read: Any) -> None:
    raw = read()
    assert raw.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert reds(raw.train.images) == pytest.approx([60, 80, 120, 140, 0, 20], abs=2)
    assert raw.test.labels.tolist() == [0, 2, 1, 2]
    assert reds(raw.test.images) == pytest.approx([100, 0, 150, 50], abs=2)
    assert {arrays.labels.dtype for arrays in raw} == {np.dtype(np.int64)}


@pytest.mark.parametrize("place", ["", "tiny_imagenet", "tiny-imagenet-200"])
def test_it_is_found(read: Any, root: Path, tmp_path: Path, layouts: Any, place: str) -> None:
    expected = read()
    if place == "tiny_imagenet":
        (root.parent / place).mkdir()
        root.rename(root.parent / place / root.name)
        layouts.assert_same(read(root.parent), expected)
    layouts.assert_same(read(root.parent / place), expected)


def test_sources_are_lists_and_folders(ask: Any, root: Path) -> None:
    found = tiny_imagenet.sources(ask("tiny_imagenet", root.parent))
    folders = [f"train/{wnid}/images" for wnid in sorted(WNIDS)]
    expected = ["wnids.txt", *folders, "val/val_annotations.txt", "val/images"]
    assert found == [root / name for name in expected]


def test_grey_images_become_rgb(read: Any, root: Path) -> None:
    picture(root / "train" / "n01" / "images" / "n01_0.JPEG", 90, mode="L")
    assert read().train.images[0, 5, 7] == pytest.approx([90, 90, 90], abs=1)


@pytest.mark.parametrize("keep", [0, 300, -20])
def test_broken_image_is_named(read: Any, root: Path, keep: int) -> None:
    file = root / "train" / "n02" / "images" / "n02_1.JPEG"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"n02_1\.JPEG: no readable image"):
        read()


def test_image_of_another_size_is_named(read: Any, root: Path) -> None:
    picture(root / "val" / "images" / "val_3.JPEG", 9, side=63)
    with pytest.raises(DataError, match=r"val_3\.JPEG: .*63 × 63 pixels, not 64 × 64"):
        read()


def test_image_of_another_kind_is_named(read: Any, root: Path) -> None:
    Image.new("RGB", (64, 64)).save(root / "val" / "images" / "val_3.JPEG", "PNG")
    with pytest.raises(DataError, match=r"val_3\.JPEG: no readable image"):
        read()


def test_images_are_counted_before_they_are_decoded(read: Any, root: Path) -> None:
    images = root / "train" / "n02" / "images"
    (images / "n02_0.JPEG").write_bytes(b"broken")
    (images / "n02_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"tiny-imagenet-200\): found 5 train images .* there should be 6"):
        read()


def test_validation_image_is_missing(read: Any, root: Path) -> None:
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1\.JPEG: no readable image"):
        read()


@pytest.mark.parametrize("line", ["val_1.JPEG\tn04", "val_1.JPEG"])
def test_unknown_class_names_file_and_row(read: Any, root: Path, line: str) -> None:
    annotate(root, ["val_0.JPEG\tn01", "val_2.JPEG\tn02", line])
    with pytest.raises(DataError, match=r"val_annotations\.txt: row 2 has class '(n04|0)', which is not in wnids"):
        read()


def test_class_without_folder(read: Any, root: Path) -> None:
    (root / "train" / "n02").rename(root / "train" / "n04")
    with pytest.raises(DataError, match=r"train: there is no n02/images, a class of wnids\.txt"):
        read()


def test_folders_of_other_classes_do_not_count(read: Any, root: Path) -> None:
    picture(root / "train" / "n04" / "images" / "n04_0.JPEG", 5)
    assert read().train.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_wrong_number_of_classes(read: Any, root: Path) -> None:
    (root / "wnids.txt").write_text("n01\nn02\nn01\n")
    with pytest.raises(DataError, match=r"wnids\.txt: 2 classes; there should be 3"):
        read()


@pytest.mark.parametrize("file", ["wnids.txt", "val/val_annotations.txt"])
def test_missing_list_is_named(read: Any, root: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(DataError, match=f"tiny-imagenet-200 has .* but no {file}; all are needed"):
        read()


def test_a_list_that_is_no_text(read: Any, root: Path) -> None:
    (root / "wnids.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"wnids\.txt: it cannot be read"):
        read()
