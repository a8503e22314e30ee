"""Parquet files of the user's own: in memory and streamed, and what is refused."""

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from otkd.core.datasets import Request, configure, survey
from otkd.core.errors import DataError, OtkdError, StorageError
from otkd.core.trial import Data
from otkd.data import blob, cache, parquet
from otkd.data.pipeline import prepare

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 7, 7, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write(file: Path, images: object, labels: object, **more: object) -> None:
    """A shard as Hugging Face has them; images are pixels or encoded already."""
    rows = [{"bytes": encoded(x) if isinstance(x, np.ndarray) else x, "path": "p"} for x in images]
    cells = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells, "label": labels, **more}), file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training shards of 4 + 2 images in 3 classes, one test shard of 3."""
    root = tmp_path / "data" / "pets"
    write(root / "data" / "train-00000-of-00002.parquet", PIXELS[:4], [0, 2, 1, 2])
    write(root / "data" / "train-00001-of-00002.parquet", PIXELS[4:6], [1, 0])
    write(root / "data" / "test-00000-of-00001.parquet", PIXELS[6:], [2, 0, 0])
    return root


def request(root: Path, **options: object) -> Request:
    """What is asked of the plug-in, after a survey."""
    asked = Request(f"parquet/{root.name}", parquet.Options(**options), root.parent, root.parents[1] / "cache")
    return asked._replace(options=parquet.Options(**{**options, "found": parquet.survey(asked)}))


def test_survey(root: Path) -> None:
    found = request(root).options.found
    assert (found.classes, found.channels, found.side, found.train, found.test) == (3, 3, 7, 6, 3)
    assert len(found.digest) == 16
    streamed = request(root, stream=True).options.found
    assert (streamed.side, streamed.channels, streamed.digest) == (0, 3, found.digest)


def test_in_memory(root: Path) -> None:
    asked = request(root)
    card = parquet.card(asked.options)
    raw = cache.load(asked, card)
    assert np.array_equal(raw.train.images, PIXELS[:6])
    assert np.array_equal(raw.test.images, PIXELS[6:])
    assert raw.train.labels.tolist() == [0, 2, 1, 2, 1, 0]
    assert (card.side, card.streamed, card.resize) == (7, False, 0)
    assert [file.name for file in parquet.sources(asked)] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "test-00000-of-00001.parquet",
    ]
    assert parquet.sources(asked._replace(data_dir=None)) == []


def test_streamed(root: Path) -> None:
    asked = request(root, stream=True, side=96)
    card = parquet.card(asked.options)
    splits = pickle.loads(pickle.dumps(cache.index(asked, card)))
    assert (card.side, card.resize, card.streamed) == (96, 110, True)
    for split, pixels in ((splits.train, PIXELS[:6]), (splits.test, PIXELS[6:])):
        assert [split.read(row) for row in range(len(pixels))] == [encoded(image) for image in pixels]
    assert splits.train.labels.tolist() == [0, 2, 1, 2, 1, 0]
    assert splits.train.where(3).endswith("train-00000-of-00002.parquet, row 3")
    assert splits.train.where(5).endswith("train-00001-of-00002.parquet, row 1")


def test_through_the_pipeline(root: Path) -> None:
    data = survey(Data(name="parquet/pets", val=2), root.parent, root.parents[1] / "cache")
    splits = prepare(data, data_dir=root.parent, cache_dir=root.parents[1] / "cache")
    assert (len(splits.train.labels), len(splits.test.labels), splits.card.classes) == (4, 3, 3)


def test_copy_is_kept_until_the_source_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.index(request(root, stream=True))
    before = parquet.index(request(root, stream=True, side=64)).train
    copies = Path(before.file).parent
    assert len(list(copies.glob("*.bin"))) == 2
    shard = root / "data" / "train-00001-of-00002.parquet"
    write(shard, PIXELS[[5, 4]], [0, 1])
    os.utime(shard, (1, 1))
    after = parquet.index(request(root, stream=True)).train
    assert after.read(4) == encoded(PIXELS[5])
    assert sorted(copies.glob("*.bin")) == sorted(copies.glob(f"*{Path(after.file).stem.partition('-')[2]}.bin"))
    monkeypatch.setattr(blob, "_write", None)
    assert parquet.index(request(root, stream=True)).train.read(5) == encoded(PIXELS[4])


@pytest.mark.parametrize("damage", ["copy", "offsets", "no copy"])
def test_a_damaged_copy_is_made_anew(root: Path, damage: str) -> None:
    copy = Path(parquet.index(request(root, stream=True)).train.file)
    if damage == "offsets":
        next(copy.parent.glob("offsets-*.npz")).write_bytes(b"PK")
    elif damage == "copy":
        copy.write_bytes(copy.read_bytes()[:-1])
    else:
        copy.unlink()
    assert parquet.index(request(root, stream=True)).train.read(5) == encoded(PIXELS[5])


def test_a_copy_that_is_cut_short_while_it_is_read(root: Path) -> None:
    train = parquet.index(request(root, stream=True)).train
    Path(train.file).write_bytes(Path(train.file).read_bytes()[:-1])
    assert train.read(4) == encoded(PIXELS[4])
    with pytest.raises(OSError, match="ends within the image"):
        train.read(5)


def test_no_room_for_the_copy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        parquet.index(request(root, stream=True))


def test_names_as_labels(root: Path) -> None:
    write(root / "data" / "train-00000-of-00002.parquet", PIXELS[:4], ["dog", "emu", "cat", "dog"])
    write(root / "data" / "train-00001-of-00002.parquet", PIXELS[4:6], ["cat", "emu"])
    write(root / "data" / "test-00000-of-00001.parquet", PIXELS[6:], pa.array(["emu"] * 3).dictionary_encode())
    raw = parquet.read(request(root))
    assert raw.train.labels.tolist() == [1, 2, 0, 1, 0, 2]
    assert raw.test.labels.tolist() == [2, 2, 2]
    assert raw.test.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("plain_text/train-a.parquet", "plain_text/validation-a.parquet"),
        ("default/train.parquet", "default/valid.parquet"),
        ("train/0000.parquet", "val/0000.parquet"),
    ],
)
def test_layouts(tmp_path: Path, train: str, test: str) -> None:
    root = tmp_path / "data" / "pets"
    write(root / train, PIXELS[:2], [0, 1])
    write(root / test, PIXELS[2:5], [0, 1, 1])
    found = request(root).options.found
    assert (found.train, found.test) == (2, 3)


def test_which_test_set(root: Path) -> None:
    write(root / "data" / "validation-00000-of-00001.parquet", PIXELS[:1], [1])
    with pytest.raises(DataError, match="test and validation are there; choose the test set"):
        request(root)
    assert request(root, test="validation").options.found.test == 1
    assert request(root, test="test").options.found.test == 3


def test_which_column(root: Path) -> None:
    for file in (root / "data").iterdir():
        table = pq.read_table(file)
        plain = pa.array([cell["bytes"].as_py() for cell in table["image"]])
        pq.write_table(table.append_column("mask", plain).append_column("fine", table["label"]), file)
    with pytest.raises(DataError, match=r"2 columns may be the images\. Columns: image \(struct<.*mask \(binary\)"):
        request(root)
    with pytest.raises(DataError, match=r"column 'masks' has no images.*Did you mean 'mask'"):
        request(root, image="masks")
    with pytest.raises(DataError, match="column 'label' has no images"):
        request(root, image="label")
    asked = request(root, image="mask", label="fine")
    assert np.array_equal(parquet.read(asked).train.images, PIXELS[:6])


def test_no_column_of_images(root: Path) -> None:
    for file in (root / "data").iterdir():
        pq.write_table(pa.table({"path": ["a"], "label": [0]}), file)
    with pytest.raises(DataError, match="0 columns may be the images"):
        request(root)


def test_a_shard_with_other_columns(root: Path) -> None:
    pq.write_table(pa.table({"img": [b""], "label": [0]}), root / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"00001-of-00002\.parquet: has columns img, label; expected image and label"):
        request(root)


def test_no_label_column(root: Path) -> None:
    with pytest.raises(DataError, match="has columns image, label; expected fine_label"):
        request(root, label="fine_label")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 1, 3], r"train has 3 different numbers, 3 among them; labels are 0 to K - 1"),
        ([-1, 0, 1, 2], r"train has 4 different numbers, -1 among them"),
        ([10**12, 0, 1, 2], r"1000000000000 among them"),
        ([None, 0, 1, 2], r"00000-of-00002\.parquet: row 0 of column 'label' is empty"),
        ([0.5, 0, 1, 2], r"column 'label' is double; labels are whole numbers or text"),
        ([True, True, True, True], r"column 'label' is bool; labels are whole"),
        (["a", "b", "c", "d"], r"text in one file and numbers in another"),
    ],
)
def test_wrong_labels(root: Path, labels: list[object], message: str) -> None:
    write(root / "data" / "train-00000-of-00002.parquet", PIXELS[:4], labels)
    with pytest.raises(DataError, match=message):
        request(root)


@pytest.mark.parametrize("label", [3, -1])
def test_label_that_training_lacks(root: Path, label: int) -> None:
    write(root / "data" / "test-00000-of-00001.parquet", PIXELS[6:], [0, label, 1])
    with pytest.raises(DataError, match=rf"test-.*: row 1 has label {label}, which no training image has"):
        request(root)


def test_a_test_set_without_rows(root: Path) -> None:
    file = root / "data" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(DataError, match="the files of the test set have no rows"):
        request(root)


def test_a_shard_without_rows(root: Path) -> None:
    file = root / "data" / "train-00000-of-00002.parquet"
    whole = pq.read_table(file)
    pq.write_table(whole.slice(0, 0), file)
    pq.write_table(whole, root / "data" / "train-00001-of-00002.parquet")
    assert np.array_equal(parquet.read(request(root)).train.images, PIXELS[:4])
    assert parquet.index(request(root, stream=True)).train.where(0).endswith("00001-of-00002.parquet, row 0")


def test_a_missing_shard(root: Path) -> None:
    (root / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"2 files train-\*\.parquet belong together; 1 are there"):
        request(root)


def test_no_train(root: Path) -> None:
    for file in (root / "data").glob("train-*"):
        file.rename(file.with_name(file.name.replace("train", "training")))
    with pytest.raises(DataError, match=r"no train-\*\.parquet.*there is data"):
        request(root)


def test_no_test(root: Path) -> None:
    (root / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="beside train there is none"):
        request(root)


def test_no_such_folder(root: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'pets'"):
        request(root.with_name("pest"))


def test_another_size(root: Path) -> None:
    write(root / "data" / "train-00001-of-00002.parquet", [PIXELS[4], PIXELS[5][:6]], [1, 0])
    with pytest.raises(
        DataError, match=r"00001-of-00002\.parquet: row 1: it is 7 × 6 pixels.*`options: {stream: true}` scales"
    ):
        parquet.read(request(root))
    assert parquet.index(request(root, stream=True)).train.read(5) == encoded(PIXELS[5][:6])


def test_first_image_is_not_square(root: Path) -> None:
    write(root / "data" / "train-00000-of-00002.parquet", [PIXELS[0][:3], *PIXELS[1:4]], [0, 2, 1, 2])
    with pytest.raises(DataError, match=r"00000-of-00002\.parquet: row 0: it is 7 × 3 pixels"):
        request(root)
    assert request(root, stream=True).options.found.train == 6


@pytest.mark.parametrize("first", [0, 1])
def test_grey_among_colour(root: Path, first: int) -> None:
    images = [PIXELS[0], PIXELS[1][:, :, 0]]
    ordered = [images[first], images[1 - first], *([images[first]] * 2)]
    write(root / "data" / "train-00000-of-00002.parquet", ordered, [0, 2, 1, 2])
    with pytest.raises(DataError, match=r"row 1: it is (grey|in colour), and the first image is .*stream: true"):
        parquet.read(request(root))
    assert request(root, stream=True).options.found.channels == 3


def test_grey(root: Path) -> None:
    for file, part in (
        ("train-00000-of-00002", slice(4)),
        ("train-00001-of-00002", slice(4, 6)),
        ("test-00000-of-00001", slice(6, 9)),
    ):
        labels = pq.read_table(root / "data" / f"{file}.parquet")["label"]
        write(root / "data" / f"{file}.parquet", list(PIXELS[part, :, :, 0]), labels)
    asked = request(root)
    card = parquet.card(asked.options)
    assert (card.channels, card.mean, card.std) == (1, (0.5,), (0.25,))
    assert np.array_equal(cache.load(asked, card).train.images, PIXELS[:6, :, :, :1])
    assert parquet.card(request(root, mean=(0.3,), std=[0.1]).options).mean == (0.3,)
    with pytest.raises(DataError, match="mean: 2 values were given; the images have 1 channels"):
        request(root, mean=(0.3, 0.4))


def test_sixteen_bits(root: Path) -> None:
    deep = encoded(np.full((7, 7), 60_000, np.uint16))
    write(root / "data" / "train-00000-of-00002.parquet", [deep] * 4, [0, 2, 1, 2])
    with pytest.raises(DataError, match=r"row 0: it has PIL's mode I;16; convert it to 8 bits"):
        request(root)


def test_paths_alone(root: Path) -> None:
    write(root / "data" / "train-00000-of-00002.parquet", [None] * 4, [0, 2, 1, 2])
    with pytest.raises(DataError, match=r"row 0 of column 'image' .*The files need the images themselves"):
        request(root)


def test_one_image_missing(root: Path) -> None:
    write(root / "data" / "train-00001-of-00002.parquet", [PIXELS[4], None], [1, 0])
    with pytest.raises(DataError, match=r"00001-of-00002\.parquet: row 1 holds no readable image"):
        parquet.read(request(root))
    assert parquet.index(request(root, stream=True)).train.read(5) == b""


def test_damaged_shard(root: Path) -> None:
    file = root / "data" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: damaged or incomplete"):
        request(root)


def test_too_many_for_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", none_left)
    with pytest.raises(DataError, match=r"6 images of 7 × 7 pixels exceed memory; with `options: {stream: true}`"):
        parquet.read(request(root))


@pytest.mark.parametrize("options", [{"side": 64}, {"resize": 300}])
def test_scaling_takes_streaming(options: dict[str, object]) -> None:
    with pytest.raises((OtkdError, ValueError), match="add `stream: true`"):
        configure("parquet/pets", options)
    assert configure("parquet/pets", {**options, "stream": True})


def test_options_survive_their_own_dump() -> None:
    for options in ({}, {"stream": True, "side": 96}):
        made = configure("parquet/pets", options)
        assert configure("parquet/pets", made.model_dump(mode="json")) == made


def test_labels_are_part_of_the_digest(root: Path) -> None:
    """Corrected in place: the file keeps its name and size."""
    shard = root / "data" / "train-00000-of-00002.parquet"
    table = pq.read_table(shard)
    pq.write_table(table, shard, compression="none", use_dictionary=False)
    before, size = request(root).options.found, shard.stat().st_size
    corrected = table.set_column(1, "label", pa.array([2, 0, 1, 2]))
    pq.write_table(corrected, shard, compression="none", use_dictionary=False)
    assert shard.stat().st_size == size
    after = request(root).options.found
    assert after.digest != before.digest
    assert after.model_copy(update={"digest": before.digest}) == before


def test_test_labels_are_part_of_the_digest(root: Path) -> None:
    before = request(root).options.found.digest
    write(root / "data" / "test-00000-of-00001.parquet", PIXELS[6:], [0, 2, 0])
    assert request(root).options.found.digest != before


def test_a_copy_elsewhere_has_the_same_digest(root: Path) -> None:
    before = request(root).options.found
    moved = Path(shutil.copytree(root, root.parents[1] / "other" / "pets"))
    assert request(moved).options.found == before


def test_a_data_folder_spelt_otherwise_has_the_same_copy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(root, stream=True)
    before = parquet.index(asked).train
    (root.parents[1] / "link").symlink_to(root.parent)
    monkeypatch.chdir(root.parents[1])
    monkeypatch.setattr(blob, "_write", None)
    for spelt in (root.parents[1] / "link", Path("data"), Path("link/../data")):
        assert parquet.index(asked._replace(data_dir=spelt)).train.file == before.file


def test_the_copy_of_another_data_folder_stays(root: Path) -> None:
    """It may be in use."""
    asked = request(root, stream=True)
    before = parquet.index(asked).train
    other = Path(shutil.copytree(root, root.parents[1] / "other" / "pets"))
    write(other / "data" / "train-00001-of-00002.parquet", PIXELS[[5, 4]], [0, 1])
    after = parquet.index(asked._replace(data_dir=other.parent)).train
    assert after.read(4) == encoded(PIXELS[5])
    assert before.read(4) == encoded(PIXELS[4])


def test_what_a_killed_copy_left_is_removed(root: Path) -> None:
    copy = Path(parquet.index(request(root, stream=True)).train.file)
    left = copy.with_name(f".{copy.name}.99999.tmp")
    left.write_bytes(b"half")
    copy.unlink()
    parquet.index(request(root, stream=True))
    assert not left.exists()


def test_a_copy_knows_whether_it_is_intact(root: Path) -> None:
    train = parquet.index(request(root, stream=True)).train
    assert train.intact()
    content = bytearray(Path(train.file).read_bytes())
    content[-1] ^= 1
    Path(train.file).write_bytes(content)
    assert not train.intact()
    Path(train.file).unlink()
    assert not train.intact()


def test_other_code_makes_another_copy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = parquet.index(request(root, stream=True)).train.file
    monkeypatch.setattr(parquet, "reader", lambda plugin: f"other code of {plugin}")
    assert parquet.index(request(root, stream=True)).train.file != before


def test_mean_and_deviation_share_a_cache(root: Path) -> None:
    plain, other = (cache.place(request(root, **options)) for options in ({}, {"mean": (0.1, 0.2, 0.3)}))
    assert plain == other
    assert cache.place(request(root, label="label", image="image")) != plain


def test_a_label_column_that_is_not_there(root: Path) -> None:
    with pytest.raises(DataError, match=r"expected lable\. .*options: \{label: …\}\. Did you mean 'label'"):
        request(root, label="lable")
