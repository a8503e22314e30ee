"""What `verify` finds: nothing in sound sets, and every fault that a test puts into one."""

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from otkd.core.datasets import Request, request_for, survey
from otkd.core.errors import DataError
from otkd.core.trial import Data
from otkd.data import cache, digits, looks
from otkd.data.source import Arrays, EncodedSplits, RawSplits
from otkd.data.verify import Findings, verify, whereabouts

DIGITS = Data(name="digits")


def request(cache_dir: Path) -> Request:
    return request_for(DIGITS, None, cache_dir)


def spoilt(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """digits whose training arrays are others."""
    raw = digits.read(request(Path("unused")))
    monkeypatch.setattr(digits, "read", lambda _: RawSplits(raw.train._replace(**changes), raw.test))


def relabelled(rows: slice, label: int) -> np.ndarray:
    labels = digits.read(request(Path("unused"))).train.labels.copy()
    labels[rows] = label
    return labels


# Sets in memory


def test_digits_are_sound(tmp_path: Path) -> None:
    found = verify(DIGITS, None, tmp_path)
    assert found.ok
    assert (found.problems, found.warnings, found.unreadable, found.files) == ((), (), (), ())
    assert found.verdict == "digits: 1,297 training and 500 test images, 10 classes, every one decoded"
    assert found.modes == (("L", 1797),)
    assert found.sizes == ((8, 8), (8, 8))
    per_class = np.bincount(digits.read(request(tmp_path)).train.labels)
    assert [tuple(count) for count in found.counts] == [
        ("train", 1297, 1297, 10, per_class.min(), per_class.max()),
        ("test", 500, 500, 10, 50, 50),
    ]
    assert not (cache.place(request(tmp_path)) / "meta.json").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            relabelled(slice(3, 8), 10),
            "train: 5 labels are out of range, the first: row 3 has label 10; labels are 0 to 9",
        ),
        (relabelled(slice(2, 3), -1), "train: 1 labels are out of range, the first: row 2 has label -1"),
        (np.zeros(1297, np.int64), "train: 9 classes have no image, the first: class 1."),
        (np.arange(1296) % 10, "train: there are 1,296 images; there should be 1,297."),
    ],
)
def test_wrong_labels(labels: np.ndarray, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoilt(monkeypatch, labels=labels)
    found = verify(DIGITS, None, tmp_path)
    assert not found.ok
    assert any(problem.startswith(message) for problem in found.problems)
    assert "problem" in found.verdict


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1297, 8, 7, 1), np.uint8), r"uint8 of shape \(8, 7, 1\); they should be uint8 of \(8, 8, 1\)"),
        (np.zeros((1297, 8, 8), np.uint8), r"uint8 of shape \(8, 8\)"),
        (np.zeros((1297, 8, 8, 1), np.float32), "float32 of shape"),
        (np.zeros((1295, 8, 8, 1), np.uint8), "1,295 images with 1,297 labels"),
    ],
)
def test_wrong_images(images: np.ndarray, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoilt(monkeypatch, images=images)
    assert re.search(message, verify(DIGITS, None, tmp_path).problems[0])


def test_a_reader_that_refuses_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: Request) -> RawSplits:
        raise DataError("train.bin: row 3 holds no readable image")

    monkeypatch.setattr(digits, "read", refuse)
    found = verify(DIGITS, None, tmp_path)
    assert found.problems == ("train.bin: row 3 holds no readable image",)
    assert found.verdict == "digits: 1 problem, see above"


def test_a_class_without_test_images_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = digits.read(request(tmp_path))
    rest = np.where(raw.test.labels == 7, 1, raw.test.labels)
    monkeypatch.setattr(digits, "read", lambda _: RawSplits(raw.train, Arrays(raw.test.images, rest)))
    found = verify(DIGITS, None, tmp_path)
    assert found.ok
    assert found.warnings == ("test: 1 classes have no image, the first: class 7.",)
    assert found.counts[1].classes == 9


def test_test_images_among_the_training_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = digits.read(request(tmp_path))
    images = raw.train.images.copy()
    images[[5, 900]] = raw.test.images[[0, 321]]
    spoilt(monkeypatch, images=images)
    found = verify(DIGITS, None, tmp_path)
    assert found.ok
    assert found.warnings == ("2 of 500 test images are among the training images, byte for byte.",)


# Against the cache


def test_a_sound_cache(tmp_path: Path) -> None:
    cache.load(request(tmp_path), DIGITS.card)
    found = verify(DIGITS, None, tmp_path)
    assert found.ok
    assert not found.warnings


@pytest.mark.parametrize("damage", ["one bit", "no file", "no json", "a shorter array"])
def test_a_cache_of_something_else(damage: str, tmp_path: Path) -> None:
    cache.load(request(tmp_path), DIGITS.card)
    folder = cache.place(request(tmp_path))
    (file,) = folder.glob("test_images-*.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "one bit":
        file.write_bytes(content)
    elif damage == "no file":
        file.unlink()
    elif damage == "a shorter array":
        np.save(file, np.load(file)[:-1])
    else:
        (folder / "meta.json").write_text("{", encoding="utf-8")
    found = verify(DIGITS, None, tmp_path)
    assert not found.ok
    assert str(folder) in found.problems[0]
    assert "Delete it" in found.problems[0]


def test_a_cache_of_other_files_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "digits.bin"
    source.write_bytes(b"one")
    monkeypatch.setattr(digits, "sources", lambda _: [source])
    cache.load(request(tmp_path), DIGITS.card)
    assert verify(DIGITS, None, tmp_path).warnings == ()
    source.write_bytes(b"three")
    found = verify(DIGITS, None, tmp_path)
    assert found.ok
    assert "is of other files" in found.warnings[0]


def test_source_files_have_their_checksums(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    files = [tmp_path / "a.bin", tmp_path / "parts" / "deep" / "b.bin"]
    for file in files:
        file.write_bytes(file.name.encode() * 5)
    monkeypatch.setattr(digits, "sources", lambda _: [tmp_path / "a.bin", tmp_path / "parts"])
    found = verify(DIGITS, None, tmp_path / "cache")
    assert [(file.path, file.bytes) for file in found.files] == [(file, 25) for file in files]
    assert found.files[1].sha256 == hashlib.sha256(b"b.bin" * 5).hexdigest()
    monkeypatch.setattr("otkd.data.verify.MANY", 1)
    assert [file.sha256 for file in verify(DIGITS, None, tmp_path / "cache").files] == ["", ""]


def test_whereabouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def where() -> str:
        return whereabouts(request(tmp_path), DIGITS.card)

    def incomplete(_: Request) -> list[Path]:
        raise DataError("half of it")

    assert where() == "not read yet"
    for sources, text in (
        (incomplete, "incomplete (otkd data verify)"),
        (lambda _: [tmp_path / "elsewhere" / "x"], "in the data folder"),
        (lambda _: [request(tmp_path).downloads / "x"], "downloaded"),
    ):
        monkeypatch.setattr(digits, "sources", sources)
        assert where() == text
    monkeypatch.undo()
    cache.load(request(tmp_path), DIGITS.card)
    assert where() == "in the cache"


# Streamed sets


def encoded(width: int, height: int, mode: str = "RGB", kind: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


class Listed:
    """Encoded images in memory; None cannot be read."""

    def __init__(self, *images: bytes | None) -> None:
        self.images = images
        self.labels = np.zeros(len(images), np.int64)

    def read(self, row: int) -> bytes:
        content = self.images[row]
        if content is None:
            raise PermissionError(13, "Permission denied")
        return content

    def where(self, row: int) -> str:
        return f"image {row}"


def test_looks() -> None:
    jpeg = encoded(11, 7, kind="JPEG")
    train = Listed(encoded(5, 3), jpeg[: len(jpeg) // 2], encoded(9, 4, "L"), b"<html>", b"", None)
    told: list[tuple[str, int, int | None]] = []
    seen, (test,) = looks.on_disk(EncodedSplits(train, Listed(encoded(5, 3))), 3, 0, lambda *step: told.append(step))
    assert [look.mode for look in seen] == ["RGB", "", "L", "", "", ""]
    assert [look.size for look in seen if not look.fault] == [(5, 3), (9, 4)]
    faults = [look.fault for look in seen]
    assert "truncated" in faults[1].lower()
    assert faults[3:5] == ["it is none of JPEG, PNG, WEBP, BMP, GIF, PPM, TIFF"] * 2
    assert "Permission denied" in faults[5]
    assert seen[0].digest == test.digest != seen[2].digest
    assert told == [("train", 6, 6), ("test", 1, 1)]


def folder(root: Path) -> Data:
    """Images of several sizes and modes in two classes."""
    for row, (split, kind) in enumerate((s, k) for s in ("train", "val") for k in ("cat", "dog") for _ in range(20)):
        (root / "pets" / split / kind).mkdir(parents=True, exist_ok=True)
        width, height = (19, 40) if row == 3 else (20 + row % 7, 23 - row % 5)
        content = encoded(width, height, "L" if row == 9 else "RGB", seed=row)
        (root / "pets" / split / kind / f"{row:02}.png").write_bytes(content)
    return Data(name="folder/pets", options={"side": 16})


def checked(data: Data, root: Path, workers: int) -> Findings:
    return verify(survey(data, root, root / "cache"), root, root / "cache", workers=workers)


def test_a_sound_folder(tmp_path: Path) -> None:
    data = folder(tmp_path)
    found = checked(data, tmp_path, 0)
    assert found.verdict == "folder/pets: 40 training and 40 test images, 2 classes, every one decoded"
    assert found.modes == (("RGB", 79), ("L", 1))
    assert found.sizes == ((20, 19), (19, 40))
    assert [tuple(count) for count in found.counts] == [("train", 40, 40, 2, 20, 20), ("test", 40, 40, 2, 20, 20)]


def test_a_corrupt_file_in_the_middle(tmp_path: Path) -> None:
    """In worker processes, too: the same findings."""
    data = folder(tmp_path)
    broken = tmp_path / "pets" / "train" / "dog" / "33.png"
    (tmp_path / "pets" / "train" / "dog" / "22.png").rename(broken)
    broken.write_bytes(broken.read_bytes()[:60])
    shared = tmp_path / "pets" / "val" / "cat" / "40.png"
    shared.write_bytes((tmp_path / "pets" / "train" / "cat" / "00.png").read_bytes())
    found = checked(data, tmp_path, 0)
    assert not found.ok
    assert not found.problems
    (line,) = found.unreadable
    assert str(broken) in line
    assert "truncated" in line.lower()
    assert found.verdict == "folder/pets: 1 problem, see above"
    assert found.warnings == ("1 of 40 test images are among the training images, byte for byte.",)
    again = checked(data, tmp_path, 2)
    assert (again.unreadable, again.modes, again.sizes) == (found.unreadable, found.modes, found.sizes)
    assert (again.counts, again.warnings) == (found.counts, found.warnings)


KILLER = """
import os, signal
import numpy as np

class Killer:
    labels = np.zeros(3, np.int64)

    def read(self, row):
        os.kill(os.getpid(), signal.SIGKILL)

    def where(self, row):
        return ""
"""


def test_a_killed_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killer_of_workers.py").write_text(KILLER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    from killer_of_workers import Killer

    with pytest.raises(DataError, match="killed while it decoded"):
        looks.on_disk(EncodedSplits(Killer(), Killer()), 3, 1, lambda *_: None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_copy_is_told_from_a_damaged_file(tmp_path: Path, split: str) -> None:
    cells = [{"bytes": encoded(9, 7, seed=row)} for row in range(6)]
    for part, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        (tmp_path / "pets").mkdir(exist_ok=True)
        table = pa.table({"image": cells[rows], "label": [0, 1, 0, 1][: rows.stop - rows.start]})
        pq.write_table(table, tmp_path / "pets" / f"{part}.parquet")
    data = Data(name="parquet/pets", options={"stream": True, "side": 16})
    assert checked(data, tmp_path, 0).ok
    (copy,) = (tmp_path / "cache").glob(f"*/{split}-*.bin")
    sound = copy.read_bytes()
    copy.write_bytes(bytes(len(sound)))
    found = checked(data, tmp_path, 0)
    assert found.unreadable == ()
    (problem,) = found.problems
    assert str(copy) in problem
    assert "Delete it" in problem
    copy.unlink()
    assert checked(data, tmp_path, 0).ok
    assert copy.read_bytes() == sound
