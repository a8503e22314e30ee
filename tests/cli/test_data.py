"""`otkd data list | verify | prepare | show`, as a person calls them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from otkd.cli.data import app
from otkd.core.errors import ConfigError, OtkdError, StorageError


@pytest.fixture
def otkd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command with a `runs/` and a data folder of its own."""
    monkeypatch.delenv("OTKD_DATA_DIR", raising=False)
    (tmp_path / "data").mkdir()

    def call(*words: str) -> Result:
        where = ["--runs", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")]
        result = CliRunner().invoke(app, [*words, *where])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def pets(root: Path) -> Path:
    """A set of one's own in class folders; returns one of its files."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 23, 19, 3), dtype=np.uint8)
    for row, image in enumerate(pixels):
        folder = root / "data" / "pets" / ("train", "val")[row // 8] / ("cat", "dog")[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:02}.png")
    return root / "data" / "pets" / "train" / "dog" / "03.png"


def test_list(otkd) -> None:
    before = otkd("list").stdout.splitlines()
    otkd("prepare", "digits")
    after = otkd("list").stdout.splitlines()
    (digits,) = (line for line in before if line.startswith("digits"))
    assert digits.split()[:5] == ["digits", "10", "1×8×8", "1,297", "500"]
    assert "not read yet" in digits
    (digits,) = (line for line in after if line.startswith("digits"))
    assert "in the cache" in digits
    (cifar,) = (line for line in after if line.startswith("cifar100 "))
    assert "to be downloaded" in cifar
    assert any(line.startswith("folder/<name>") for line in after)


def test_verify(otkd) -> None:
    result = otkd("verify", "digits")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[-1] == "digits: 1,297 training and 500 test images, 10 classes, every one decoded"
    assert ["test", "500", "500", "10", "of", "10", "50"] in [line.split() for line in lines]
    assert "decoded: L 1,797; 8 × 8 pixels" in lines


def test_verify_a_corrupt_file(otkd, tmp_path: Path) -> None:
    broken = pets(tmp_path)
    broken.write_bytes(broken.read_bytes()[:99])
    result = otkd("verify", "folder/pets", "--set", "options.side=16", "--workers", "0")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert any(line.startswith(f"✗ {broken}: ") for line in lines)
    assert lines[-1] == "folder/pets: 1 problem, see above"


def test_prepare_twice(otkd, tmp_path: Path) -> None:
    first, second = (otkd("prepare", "digits").stdout for _ in range(2))
    assert first.startswith("digits is ready: 1,297 training and 500 test images of 10 classes, in ")
    assert second.startswith("digits is up to date: ")
    folder = tmp_path / "runs" / "cache" / "digits"
    size = sum(file.stat().st_size for file in folder.glob("*.*"))
    assert second.splitlines()[1] == f"{folder}, {size / 1e6:.1f} MB"
    (folder / "meta.json").write_text("{}", encoding="utf-8")
    assert "is ready" in otkd("prepare", "digits").stdout


def test_prepare_a_folder(otkd, tmp_path: Path) -> None:
    pets(tmp_path)
    sized = ("folder/pets", "--set", "options.side=64")
    first, second, other = (otkd("prepare", *words).stdout for words in (sized, sized, ("folder/pets",)))
    assert first.startswith("folder/pets is ready: 8 training and 8 test images of 2 classes")
    assert second.startswith("folder/pets is up to date: ")
    assert other.startswith("folder/pets is up to date: "), "one listing serves every size"


def test_show(otkd, tmp_path: Path) -> None:
    out = tmp_path / "below" / "digits.png"
    result = otkd("show", "digits", "--out", str(out), "--images", "3", "--versions", "2", "--augment", "{pad: 2}")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert result.stdout.splitlines()[0].endswith(f"{picture.width} × {picture.height} pixels")
    assert result.stdout.splitlines()[1] == "augment: {pad: 2}"
    assert "augment: {pad: 1}" in otkd("show", "digits", "--out", str(out)).stdout
    more = ("--augment", "{pad: 3}", "--set", "augment.flip=true", "--set", "augment.cutout=2")
    assert "augment: {pad: 3, flip: true, cutout: 2}" in otkd("show", "digits", "--out", str(out), *more).stdout


def test_show_a_folder(otkd, tmp_path: Path) -> None:
    pets(tmp_path)
    out = tmp_path / "pets.png"
    otkd("show", "folder/pets", "--set", "options.side=64", "--images", "2", "--versions", "1", "--out", str(out))
    with Image.open(out) as picture:
        assert picture.size == (6 + 2 * 134, 16 + 2 * 150)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["verify", "digit"], OtkdError, "there is no data set 'digit'.*Did you mean 'digits'"),
        (["verify", "folder"], OtkdError, "there is no data set 'folder'"),
        (["show", "digits/x"], OtkdError, "there is no data set 'digits/x'"),
        (["verify", "folder/x"], OtkdError, "folder/x"),
        (["prepare", "digits", "--set", "options.x=1"], ConfigError, r"options\.x: unknown key"),
        (["prepare", "digits", "--set", "limit"], ConfigError, "'limit' is not of the form"),
        (["prepare", "digits", "--set", "limt=3"], ConfigError, "limt: unknown key.*Did you mean 'limit'"),
        (["show", "digits", "--augment", "{pda: 4}"], ConfigError, r"augment\.pda: unknown key"),
        (["show", "digits", "--augment", "{pad: 4"], ConfigError, "--augment"),
        (["show", "digits", "--augment", "flip"], ConfigError, "augment"),
    ],
)
def test_what_is_wrong_is_told(words: list[str], kind: type[Exception], message: str, otkd) -> None:
    with pytest.raises(kind, match=f"(?s){message}"):
        otkd(*words)


def test_a_cache_that_cannot_be_written(otkd, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder", encoding="utf-8")
    with pytest.raises(OtkdError, match="cannot be written"):
        otkd("prepare", "digits")


def test_show_into_a_folder(otkd, tmp_path: Path) -> None:
    with pytest.raises(OtkdError, match=r"--out .* is a folder; .*sheet\.png"):
        otkd("show", "digits", "--out", str(tmp_path))


def test_a_stale_cache_that_cannot_be_written_anew(otkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise StorageError("no space left")

    otkd("prepare", "digits")
    meta = tmp_path / "runs" / "cache" / "digits" / "meta.json"
    meta.write_text(meta.read_text().replace('"reader": "', '"reader": "other'))
    monkeypatch.setattr("otkd.data.cache._save", full)
    with pytest.raises(StorageError, match="cannot be written"):
        otkd("prepare", "digits")


def test_prepare_knows_its_files_from_those_of_other_names(otkd, tmp_path: Path) -> None:
    pets(tmp_path)
    (tmp_path / "data" / "pets-deadbeef").symlink_to(tmp_path / "data" / "pets")
    assert "deadbeef" in otkd("prepare", "folder/pets-deadbeef").stdout
    assert "deadbeef" not in otkd("prepare", "folder/pets").stdout
