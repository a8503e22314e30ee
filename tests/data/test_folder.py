"""Class folders of the user's own: what is found, what is kept, and what is refused."""

import io
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otkd.core.datasets import Request, survey
from otkd.core.errors import DataError, StorageError
from otkd.core.trial import Data
from otkd.data import folder, listing
from otkd.data.source import EncodedSplits


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (shade, shade, shade)).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes, three training and two test images, with what lies about in such folders."""
    root = tmp_path / "data" / "pets"
    picture(root / "train" / "dog" / "b.png", 1)
    picture(root / "train" / "dog" / "deep" / "er" / "a.JPEG", 2)
    picture(root / "train" / "cat" / "c.jpg", 3)
    picture(root / "val" / "dog" / "d.webp", 4)
    picture(root / "val" / "cat" / "é.bmp", 5)
    (root / "train" / "dog" / "notes.txt").write_text("no image")
    (root / "train" / "dog" / "._b.png").write_bytes(b"what macOS leaves")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "readme.md").write_text("")
    return root


def request(root: Path, **options: object) -> Request:
    name = f"folder/{root.name}"
    return Request(name, folder.Options(**options), root.parent, root.parents[1] / "cache")


def shades(split: object) -> list[int]:
    pixels = [Image.open(io.BytesIO(split.read(row))).getpixel((0, 0)) for row in range(len(split.labels))]
    return [pixel[0] for pixel in pixels]


def kept(root: Path) -> Path:
    return root.parents[1] / "cache" / "folder%2Fpets" / "listing.npz"


def forbid_scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("looked at the folders again")

    monkeypatch.setattr(listing.Scan, "entries", refuse)


def test_finds_every_image(pets: Path) -> None:
    found = folder.survey(request(pets))
    assert (found.classes, found.channels, found.train, found.test, found.side) == (2, 3, 3, 2, 0)
    splits = folder.index(request(pets))
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert splits.train.labels.dtype == np.int64
    assert shades(splits.train) == pytest.approx([3, 1, 2], abs=2)
    assert shades(splits.test) == pytest.approx([5, 4], abs=2)
    assert splits.test.where(0) == str(pets / "val" / "cat" / "é.bmp")
    assert folder.sources(request(pets)) == [pets / "train", pets / "val"]


def test_goes_to_other_processes(pets: Path) -> None:
    splits: EncodedSplits = pickle.loads(pickle.dumps(folder.index(request(pets))))
    assert splits.train.read(1) == (pets / "train" / "dog" / "b.png").read_bytes()


def test_an_image_that_is_gone(pets: Path) -> None:
    splits = folder.index(request(pets))
    (pets / "train" / "dog" / "b.png").unlink()
    with pytest.raises(OSError, match=r"b\.png"):
        splits.train.read(1)


def test_card(pets: Path) -> None:
    data = survey(Data(name="folder/pets", options={"side": 160}), pets.parent, pets.parents[1] / "cache")
    card = data.card
    assert (card.classes, card.train, card.test, card.side, card.resize, card.streamed) == (2, 3, 2, 160, 183, True)
    assert card.mean == (0.485, 0.456, 0.406)
    assert data.augment is not None
    assert data.augment.resized_crop is not None
    assert survey(data, pets.parent, pets.parents[1] / "cache") == data


def test_options_may_come_as_lists(pets: Path) -> None:
    options = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    assert Data(name="folder/pets", options=options).card.std == (1.0, 2.0, 3.0)


def test_the_list_is_kept(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = folder.index(request(pets)), folder.survey(request(pets))
    forbid_scanning(monkeypatch)
    again = folder.index(request(pets, side=96))
    assert folder.survey(request(pets)) == found
    for one, other in zip(before, again, strict=True):
        assert (one.root, one.paths.tolist(), one.labels.tolist()) == (
            other.root,
            other.paths.tolist(),
            other.labels.tolist(),
        )


def added(root: Path) -> None:
    picture(root / "train" / "dog" / "deep" / "er" / "z.png")


def removed(root: Path) -> None:
    (root / "train" / "dog" / "deep" / "er" / "a.JPEG").unlink()


def renamed(root: Path) -> None:
    (root / "val" / "dog" / "d.webp").rename(root / "val" / "dog" / "e.webp")


def new_class(root: Path) -> None:
    picture(root / "train" / "emu" / "a.png")


@pytest.mark.parametrize("change", [added, removed, renamed, new_class])
def test_a_change_makes_another_digest(pets: Path, change: object) -> None:
    before = folder.survey(request(pets))
    change(pets)
    after = folder.survey(request(pets))
    assert after.digest != before.digest
    assert after.train == len(folder.index(request(pets)).train.labels)


def test_a_second_test_set_is_noticed(pets: Path) -> None:
    folder.survey(request(pets))
    shutil.copytree(pets / "val", pets / "test")
    picture(pets / "test" / "dog" / "more.png")
    with pytest.raises(DataError, match=r"test and val are there; choose the test set: options: \{test: test\}"):
        folder.survey(request(pets))
    assert folder.survey(request(pets, test="val")).test == 2
    assert folder.survey(request(pets, test="test")).test == 3


def test_a_copy_elsewhere_has_the_same_digest(pets: Path) -> None:
    before = folder.survey(request(pets))
    (pets.parents[1] / "other").mkdir()
    moved = Path(shutil.copytree(pets, pets.parents[1] / "other" / "pets"))
    asked = request(moved)._replace(cache_dir=request(pets).cache_dir)
    assert folder.survey(asked) == before
    assert folder.index(asked).train.where(0).startswith(str(moved))


def test_another_data_folder_has_a_list_of_its_own(pets: Path) -> None:
    folder.survey(request(pets))
    other = pets.parents[1] / "other" / "pets"
    shutil.copytree(pets, other)
    picture(other / "train" / "dog" / "more.png")
    assert folder.survey(request(other)._replace(cache_dir=request(pets).cache_dir)).train == 4


def test_size_is_part_of_the_digest(pets: Path) -> None:
    before = folder.survey(request(pets))
    (pets / "train" / "cat" / "c.jpg").write_bytes(b"longer or shorter")
    picture(pets / "train" / "cat" / "tmp.png").unlink()
    assert folder.survey(request(pets)).digest != before.digest


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_damaged_list_is_made_anew(pets: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    found = folder.survey(request(pets))
    content = bytearray(kept(pets).read_bytes())
    content[len(content) // 2] ^= 1
    kept(pets).write_bytes(content if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert folder.survey(request(pets)) == found
    assert "is damaged" in caplog.text


def test_goes_on_without_a_cache(pets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path) -> None:
        raise StorageError(f"cannot write {path}")

    monkeypatch.setattr(listing, "atomic", full)
    with caplog.at_level(logging.WARNING):
        assert folder.survey(request(pets)).train == 3
    assert "without a kept list" in caplog.text


def test_names_that_are_no_unicode(pets: Path) -> None:
    raw = os.fsencode(pets / "train" / "cat") + b"/\xff.png"
    try:
        os.rename(pets / "train" / "cat" / "c.jpg", raw)
    except OSError:
        pytest.skip("this file system takes no such name")
    for _ in range(2):
        assert folder.index(request(pets)).train.read(0).startswith(b"\xff\xd8")


def test_links_are_followed(pets: Path) -> None:
    (pets / "train" / "emu").symlink_to(pets / "train" / "dog")
    assert folder.survey(request(pets)).train == 5


def test_links_in_a_circle(pets: Path) -> None:
    (pets / "train" / "cat" / "again").symlink_to(pets / "train" / "cat")
    with pytest.raises(DataError, match=r"again.*Too many levels.*where it links to"):
        folder.survey(request(pets))


def test_no_data_folder(pets: Path) -> None:
    with pytest.raises(
        DataError, match="name the folder that pets lies in: --data-dir folder, DATA=folder for make, or OTKD"
    ):
        folder.survey(request(pets)._replace(data_dir=None))


@pytest.mark.parametrize(
    "name", ["folder/pests", "folder/", "folder/..", "folder/../data/pets", "folder//", "folder/."]
)
def test_no_such_folder(pets: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"there is no folder .* it has pets"):
        folder.survey(request(pets)._replace(name=name))


def test_nearest_folder(pets: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'pets'"):
        folder.survey(request(pets)._replace(name="folder/pests"))
    with pytest.raises(DataError, match="it has none"):
        folder.survey(request(pets)._replace(data_dir=pets / "absent"))


def no_train(root: Path) -> None:
    (root / "train").rename(root / "training")


def no_test(root: Path) -> None:
    (root / "val").rename(root / "eval")


def strange_class(root: Path) -> None:
    (root / "val" / "dog").rename(root / "val" / "dogs")


def empty_class(root: Path) -> None:
    (root / "train" / "emu").mkdir()


def class_without_images(root: Path) -> None:
    (root / "val" / "cat" / "é.bmp").rename(root / "val" / "cat" / "é.txt")


def no_classes(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def loose_image(root: Path) -> None:
    picture(root / "train" / "stray.png")


def broken_link(root: Path) -> None:
    (root / "train" / "dog" / "gone.png").symlink_to(root / "nowhere.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_train, r"pets has no folder train .* it has training, val\. Did you mean 'training'"),
        (no_test, r"there is no test or val or valid or validation to test on; beside train there is eval"),
        (strange_class, r"val: train has no class 'dogs'; it has cat, dog\. Did you mean 'dog'"),
        (empty_class, r"train: there is no image below emu"),
        (class_without_images, r"val: there is no image below cat"),
        (no_classes, r"train: there is no class folders"),
        (loose_image, r"stray\.png lies in no class folder"),
        (broken_link, r"gone\.png: cannot be read \(No such file"),
    ],
)
def test_wrong_layout(pets: Path, change: object, message: str) -> None:
    change(pets)
    with pytest.raises(DataError, match=message):
        folder.survey(request(pets))


def test_a_test_set_of_that_name(pets: Path) -> None:
    with pytest.raises(DataError, match=r"there is no vall to test on.*Did you mean 'val'"):
        folder.survey(request(pets, test="vall"))


def test_unreadable_folder(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"dog: cannot be read \(Permission denied\)\. Check its permissions"):
        folder.survey(request(pets))


def test_many_names_are_cut_short() -> None:
    assert listing.named(map(str, range(23))).endswith(", 19 and 3 more")
    assert listing.named([]) == "none"


def test_planning_imports_no_torch() -> None:
    modules = ", ".join(f"otkd.data.{name}" for name in ("folder", "parquet", "imagenet", "synthetic"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_data_folder_spelt_otherwise_has_the_same_list(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder.survey(request(pets))
    (pets.parents[1] / "link").symlink_to(pets.parent)
    monkeypatch.chdir(pets.parents[1])
    forbid_scanning(monkeypatch)
    for spelt in (pets.parents[1] / "link", Path("data"), Path("link/../data")):
        assert folder.survey(request(pets)._replace(data_dir=spelt)) == before


def test_a_link_that_leads_elsewhere_now(pets: Path) -> None:
    shutil.copytree(pets, pets.parents[1] / "other" / "pets")
    picture(pets.parents[1] / "other" / "pets" / "train" / "dog" / "more.png")
    link = pets.parents[1] / "link"
    link.symlink_to(pets.parent)
    asked = request(pets)._replace(data_dir=link)
    assert folder.survey(asked).train == 3
    link.unlink()
    link.symlink_to(pets.parents[1] / "other")
    assert folder.survey(asked).train == 4


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(36, "File name too long")])
def test_a_folder_that_cannot_be_looked_at(pets: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(path: Path) -> bool:
        raise error

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(
        DataError, match=rf"pets cannot be read \({error.strerror}\)\. Check .* name another data folder"
    ):
        folder.survey(request(pets))
