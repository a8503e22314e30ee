"""ImageNet in each of its layouts, written small in their own formats."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets.imagenet as official
from PIL import Image
from scipy.io import savemat

from otkd.core.datasets import Request, card, configure
from otkd.core.errors import DataError
from otkd.data import cache, imagenet
from otkd.data.source import EncodedSplits

WNIDS = ("n02084071", "n01440764", "n09999999")
"""In the order of the challenge's numbers, which is not that of the names."""
VAL = (1, 2, 3, 1, 2)
"""The challenge's number of each validation image's class."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "CARD", replace(imagenet.CARD, classes=3, train=4, test=5))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5)).save(path, "JPEG")


def write_train(root: Path) -> None:
    for wnid, count in zip(WNIDS, (1, 2, 1), strict=True):
        for number in range(count):
            picture(root / "train" / wnid / f"{wnid}_{number}.JPEG")


def val_name(place: int) -> str:
    return f"ILSVRC2012_val_{place:08d}"


def write_flat(root: Path) -> None:
    for place in range(1, len(VAL) + 1):
        picture(root / "val" / f"{val_name(place)}.JPEG")


def write_by_class(root: Path) -> None:
    for place, number in enumerate(VAL, 1):
        picture(root / "val" / WNIDS[number - 1] / f"{val_name(place)}.JPEG")


def write_devkit(root: Path) -> None:
    """As in ILSVRC2012_devkit_t12: classes first, then synsets that have children."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.zeros((len(WNIDS) + 1, 1), dtype=[(field, object) for field in (*fields, "num_train_images")])
    for row, wnid in enumerate((*WNIDS, "n00001740")):
        above = row == len(WNIDS)
        synsets[row, 0] = (row + 1, wnid, "a, b", "…", 3 * above, [1, 2, 3] if above else [], int(above), 1300)
    (root / "data").mkdir(parents=True)
    savemat(root / "data" / "meta.mat", {"synsets": synsets})
    lines = "".join(f"{number}\n" for number in VAL)
    (root / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def write_solution(file: Path) -> None:
    boxes = " ".join(["85 1 499 272"])
    rows = [f"{val_name(place)},{WNIDS[n - 1]} {boxes} {WNIDS[n - 1]} {boxes} " for place, n in enumerate(VAL, 1)]
    file.write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


def index(data_dir: Path | None, tmp_path: Path, **options: int) -> EncodedSplits:
    request = Request("imagenet", imagenet.Options(**options), data_dir, tmp_path / "cache")
    return cache.index(request, imagenet.card(request.options))


def assert_right(splits: EncodedSplits) -> None:
    """Labels follow sorted names: 0 is n01440764, whose number is 2."""
    names = sorted(WNIDS)
    assert splits.train.labels.tolist() == [0, 0, 1, 2]
    assert [Path(splits.train.where(row)).parent.name for row in range(4)] == [names[0], names[0], names[1], names[2]]
    found = {Path(splits.test.where(row)).stem: int(label) for row, label in enumerate(splits.test.labels)}
    assert found == {val_name(place): names.index(WNIDS[number - 1]) for place, number in enumerate(VAL, 1)}
    assert splits.test.read(3).startswith(b"\xff\xd8")


@pytest.mark.parametrize("below", ["imagenet", "ILSVRC2012", ""])
def test_class_folders(tmp_path: Path, below: str) -> None:
    root = tmp_path / "data" / below
    write_train(root)
    write_by_class(root)
    assert_right(index(tmp_path / "data", tmp_path))


@pytest.mark.parametrize("beside", [True, False])
def test_development_kit(tmp_path: Path, beside: bool) -> None:
    root = tmp_path / "data" / "imagenet"
    write_train(root)
    write_flat(root)
    write_devkit((root.parent if beside else root) / "ILSVRC2012_devkit_t12")
    assert_right(index(tmp_path / "data", tmp_path))


@pytest.mark.parametrize("below", ["", "imagenet"])
def test_kaggle(tmp_path: Path, below: str) -> None:
    top = tmp_path / "data" / below
    root = top / "ILSVRC" / "Data" / "CLS-LOC"
    write_train(root)
    write_flat(root)
    write_solution(top / "LOC_val_solution.csv")
    assert_right(index(tmp_path / "data", tmp_path))
    request = Request("imagenet", imagenet.Options(), tmp_path / "data", tmp_path)
    assert imagenet.sources(request) == [root / "train", root / "val", top / "LOC_val_solution.csv"]


def test_rows_are_those_of_class_folders(tmp_path: Path) -> None:
    for name, write in (("flat", write_flat), ("folders", write_by_class)):
        write_train(tmp_path / name / "imagenet")
        write(tmp_path / name / "imagenet")
    write_devkit(tmp_path / "flat" / "imagenet" / "ILSVRC2012_devkit_t12")
    one, other = (index(tmp_path / name, tmp_path / name).test for name in ("flat", "folders"))
    assert [Path(one.where(row)).name for row in range(5)] == [Path(other.where(row)).name for row in range(5)]


def test_kit_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth: torchvision's own reader of the same kit."""
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12")
    saved: list[object] = []
    monkeypatch.setattr(official, "_verify_archive", lambda *args: None)
    monkeypatch.setattr(official, "extract_archive", lambda archive, to: write_devkit(Path(to) / imagenet.DEVKIT))
    monkeypatch.setattr(official.torch, "save", lambda content, path: saved.append(content))
    official.parse_devkit_archive(tmp_path)
    _, wnids = saved[0]
    ours = imagenet._devkit(tmp_path / imagenet.DEVKIT, imagenet.Scan(tmp_path))
    assert ours == {val_name(place): wnid for place, wnid in enumerate(wnids, 1)}


def test_the_list_is_kept_until_the_kit_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data" / "imagenet"
    write_train(root)
    write_flat(root)
    write_solution(root / "LOC_val_solution.csv")
    before = index(tmp_path / "data", tmp_path).test
    monkeypatch.setattr(imagenet, "_scanned", None)
    assert index(tmp_path / "data", tmp_path, side=96).test.labels.tolist() == before.labels.tolist()
    write_solution(root / "LOC_val_solution.csv")
    with pytest.raises(TypeError):
        index(tmp_path / "data", tmp_path)


def test_card_by_options() -> None:
    made = card("imagenet", configure("imagenet", {"side": 160}))
    assert (made.classes, made.train, made.test) == (1000, 1_281_167, 50_000)
    assert (made.side, made.resize, made.streamed) == (160, 183, True)
    assert card("imagenet").resize == 256


@pytest.mark.parametrize("there", [None, "empty", "absent"])
def test_nothing_there_names_every_way(tmp_path: Path, there: str | None) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        index(tmp_path / there if there else None, tmp_path)
    for way in ("image-net.org", "Kaggle", "--data-dir folder", "DATA=folder", "OTKD_DATA_DIR=folder", "make demo"):
        assert way in str(caught.value)
    assert imagenet.sources(Request("imagenet", imagenet.Options(), None, tmp_path)) == []


def test_a_folder_named_train_of_something_else(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "train" / "dog" / "a.jpg")
    with pytest.raises(DataError, match="no images below"):
        index(tmp_path / "data", tmp_path)


def no_truth(root: Path) -> None:
    write_flat(root)


def missing_class(root: Path) -> None:
    write_by_class(root)
    for file in (root / "train" / WNIDS[0]).iterdir():
        file.unlink()
    (root / "train" / WNIDS[0]).rmdir()


def class_of_another_kind(root: Path) -> None:
    write_by_class(root)
    picture(root / "train" / "dogs" / "a.jpg")


def missing_image(root: Path) -> None:
    write_by_class(root)
    (root / "val" / WNIDS[2] / f"{val_name(3)}.JPEG").rename(root / "val" / WNIDS[2] / "x.txt")
    picture(root / "val" / WNIDS[2] / "y.JPEG")
    (root / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG").unlink()


def no_val(root: Path) -> None:
    write_devkit(root / "ILSVRC2012_devkit_t12")


def strange_image(root: Path) -> None:
    write_flat(root)
    write_devkit(root / "ILSVRC2012_devkit_t12")
    picture(root / "val" / "ILSVRC2012_val_00000006.JPEG")


def damaged_meta(root: Path) -> None:
    write_flat(root)
    write_devkit(root / "ILSVRC2012_devkit_t12")
    (root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(b"MATLAB 5.0" * 30)


def number_out_of_range(root: Path) -> None:
    write_flat(root)
    write_devkit(root / "ILSVRC2012_devkit_t12")
    (root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n4\n1\n1\n")


def other_table(root: Path) -> None:
    write_flat(root)
    (root / "LOC_val_solution.csv").write_text("a,b\n1,2\n")


def empty_cell(root: Path) -> None:
    write_flat(root)
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{val_name(1)}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_truth, r"nothing says which class .* put ILSVRC2012_devkit_t12 .* or LOC_val_solution\.csv"),
        (missing_class, r"train: has 2 folders; it should have 3"),
        (class_of_another_kind, r"train: has 4 folders, dogs for one, which is no class of ImageNet"),
        (missing_image, r"found 3 train images with 3 labels; there should be 4"),
        (no_val, r"imagenet has train and no val, .*(?s:.*)image-net\.org"),
        (strange_image, r"val_00000006\.JPEG: .*devkit_t12 has no class for it"),
        (damaged_meta, r"devkit_t12: cannot read meta\.mat"),
        (number_out_of_range, r"devkit_t12: cannot read .*KeyError\(4\)"),
        (other_table, r"solution\.csv: no list of ImageId, PredictionString"),
        (empty_cell, r"solution\.csv: no list of ImageId, PredictionString"),
    ],
)
def test_damage(tmp_path: Path, change: object, message: str) -> None:
    root = tmp_path / "data" / "imagenet"
    write_train(root)
    change(root)
    with pytest.raises(DataError, match=message):
        index(tmp_path / "data", tmp_path)
