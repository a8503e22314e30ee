"""Finding a data set in its layouts, and downloading it, with two made-up layouts of text files."""

import socket
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets.utils as web

from otkd.core.datasets import DataOptions, Request
from otkd.core.errors import DataError
from otkd.data import originals
from otkd.data.originals import Item, Layout, Origin
from otkd.data.source import Arrays


def numbers(paths: list[Path]) -> Arrays:
    """The numbers in text files, as labels; of a folder the number of its files."""
    values = [len(list(path.iterdir())) if path.is_dir() else int(path.read_text()) for path in paths]
    return Arrays(np.zeros((len(values), 1, 1, 1), np.uint8), np.array(values))


SHARDS = Layout(("", "deeper"), ("train-*.txt",), ("test-*.txt",), numbers, "as in a mirror")
FOLDERS = Layout(("toy-v1",), ("names", "train/*/"), ("names", "test"), numbers, "as in the archive")
ITEMS = [
    Item("https://example.org/toy.zip", "1" * 32, "toy-v1"),
    Item("https://example.org/more", "2" * 32, "more"),
]
TOY = Origin("toy", (SHARDS, FOLDERS), lambda: ITEMS, megabytes=3, advice=", or do without it")


def ask(tmp_path: Path, data_dir: Path | None) -> Request:
    return Request("toy", DataOptions(), data_dir, tmp_path)


def write(folder: Path, **files: object) -> Path:
    """Text files; `__` in a name is a hyphen, and `.txt` is added to these."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / (name.replace("__", "-") + ".txt" if "__" in name else name)).write_text(str(value))
    return folder


def write_folders(base: Path, test: int = 4) -> Path:
    folder = write(base / "toy-v1", names=9, test=test)
    write(folder / "train" / "a", one=1)
    write(folder / "train" / "b", one=1, two=2)
    return base


def read(tmp_path: Path, data_dir: Path | None) -> tuple[list[int], list[int]]:
    raw = originals.read(ask(tmp_path, data_dir), TOY)
    return raw.train.labels.tolist(), raw.test.labels.tolist()


@pytest.mark.parametrize("place", ["", "toy", "deeper", "toy/deeper"])
def test_shards_in_every_place(tmp_path: Path, place: str) -> None:
    write(tmp_path / "data" / place, train__10=3, train__09=2, test__0=1)
    assert read(tmp_path, tmp_path / "data") == ([2, 3], [1])


@pytest.mark.parametrize(
    ("place", "named"), [("", ""), ("toy", ""), ("toy", "toy"), ("", "toy-v1"), ("toy", "toy/toy-v1")]
)
def test_folders_in_every_place(tmp_path: Path, place: str, named: str) -> None:
    write_folders(tmp_path / "data" / place)
    assert read(tmp_path, tmp_path / "data" / named) == ([9, 1, 2], [9, 4])


def test_sources_name_each_file_once(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data")
    folder = data / "toy-v1"
    expected = [folder / "names", folder / "train" / "a", folder / "train" / "b", folder / "test"]
    assert originals.sources(ask(tmp_path, data), TOY) == expected


def test_the_first_layout_and_the_own_folder_win(tmp_path: Path) -> None:
    data = write_folders(write(tmp_path / "data", train__0=1, test__0=1))
    assert read(tmp_path, data) == ([1], [1])
    write(data / "toy", train__0=7, test__0=7)
    assert read(tmp_path, data) == ([7], [7])


def test_the_data_folder_comes_before_downloads(tmp_path: Path) -> None:
    write_folders(tmp_path / "downloads" / "toy", test=5)
    assert read(tmp_path, None)[1] == [9, 5]
    assert read(tmp_path, write_folders(tmp_path / "data"))[1] == [9, 4]


def test_a_part_is_refused_unless_something_is_whole(tmp_path: Path) -> None:
    data = write(tmp_path / "data", train__0=1)
    with pytest.raises(
        DataError, match=r"toy: .*data has train-\*\.txt but no test-\*\.txt; all.*, or do without it, or"
    ):
        originals.sources(ask(tmp_path, data), TOY)
    assert read(tmp_path, write_folders(data)) == ([9, 1, 2], [9, 4])
    (data / "train-0.txt").unlink()
    (data / "toy-v1" / "names").unlink()
    with pytest.raises(DataError, match=r"toy-v1 has train/\*/ and test but no names; all are needed"):
        originals.sources(ask(tmp_path, data), TOY)


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "data" / "toy-v1", names=1, test=1)
    write(folder / "train", file=1)
    with pytest.raises(DataError, match=r"has names and test but no train/\*/;"):
        originals.sources(ask(tmp_path, tmp_path / "data"), TOY)
    (folder / "train" / "a").mkdir()
    (folder / "test").unlink()
    (folder / "test").mkdir()
    with pytest.raises(DataError, match=r"has names and train/\*/ but no test;"):
        originals.sources(ask(tmp_path, tmp_path / "data"), TOY)


@pytest.mark.parametrize("data_dir", [None, "empty", "absent"])
def test_nothing_there(tmp_path: Path, data_dir: str | None) -> None:
    (tmp_path / "empty").mkdir()
    assert originals.sources(ask(tmp_path, tmp_path / data_dir if data_dir else None), TOY) == []


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("data_dir", [None, "empty", "absent"])
def test_every_way_out(tmp_path: Path, data_dir: str | None) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        read(tmp_path, tmp_path / data_dir if data_dir else None)
    message = str(caught.value)
    assert f"under {tmp_path / data_dir}" in message if data_dir else "no data folder was named" in message
    for way in (
        "  - in toy: train-*.txt and test-*.txt, as in a mirror, or\n",
        "  - in toy-v1: names, train/*/ and test, as in the archive,\n",
        "where the download works, or do without it, or try `make demo`",
        "--data-dir folder",
        "DATA=folder for make",
        "OTKD_DATA_DIR=folder",
        "no route to host",
    ):
        assert way in message
    assert not (tmp_path / "downloads" / ".toy.partial").exists()


class Web:
    """Stands for torchvision's downloads: writes what was asked for, and remembers the addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.asked: list[str] = []
        self.fails = fails
        monkeypatch.setattr(web, "download_url", self.file)
        monkeypatch.setattr(web, "download_and_extract_archive", self.archive)

    def archive(self, url: str, folder: Path, *, md5: str, remove_finished: bool) -> None:
        assert (md5, remove_finished) == ("1" * 32, True)
        assert socket.getdefaulttimeout() == originals.TIMEOUT
        write_folders(Path(folder))
        self._answer(url)

    def file(self, url: str, folder: Path, name: str, md5: str) -> None:
        assert (name, md5) == ("more", "2" * 32)
        write(Path(folder), more=1)
        self._answer(url)

    def _answer(self, url: str) -> None:
        self.asked.append(url.rpartition("/")[2])
        if self.asked[-1] == self.fails:
            raise OSError("half way")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_download_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Web(monkeypatch)
    before = socket.getdefaulttimeout()
    assert before != originals.TIMEOUT, "a test before this one has left it behind"
    assert read(tmp_path, None) == ([9, 1, 2], [9, 4])
    assert answers.asked == ["toy.zip", "more"]
    assert names(tmp_path / "downloads") == ["toy"]
    assert names(tmp_path / "downloads" / "toy") == ["more", "toy-v1"]
    assert socket.getdefaulttimeout() == before
    assert read(tmp_path, None) == ([9, 1, 2], [9, 4])
    assert answers.asked == ["toy.zip", "more"]


def test_a_download_that_breaks_off_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Web(monkeypatch, fails="toy.zip")
    with pytest.raises(DataError, match="half way"):
        read(tmp_path, None)
    assert names(tmp_path / "downloads") == []


def test_files_that_arrived_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "downloads" / "toy", more=1)
    answers = Web(monkeypatch)
    read(tmp_path, None)
    assert answers.asked == ["toy.zip"]


def test_a_damaged_folder_of_a_download_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "downloads" / "toy" / "toy-v1", names=8, old=1)
    Web(monkeypatch)
    assert read(tmp_path, None) == ([9, 1, 2], [9, 4])
    assert names(tmp_path / "downloads" / "toy" / "toy-v1") == ["names", "test", "train"]


def test_another_process_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finishes its download while this one waits for the lock."""

    @contextmanager
    def locked(path: Path) -> Any:
        assert path.parent == tmp_path / "downloads"
        write_folders(tmp_path / "downloads" / "toy")
        yield

    monkeypatch.setattr(originals, "locked", locked)
    answers = Web(monkeypatch)
    assert read(tmp_path, None) == ([9, 1, 2], [9, 4])
    assert answers.asked == []


def test_a_download_without_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Web(monkeypatch)
    origin = TOY._replace(layouts=(SHARDS,))
    with pytest.raises(DataError, match=r"toy: the download in .* lacks files"):
        originals.read(ask(tmp_path, None), origin)


def test_every_item_names_a_checksum() -> None:
    """Truth: torchvision's own tables of addresses and MD5 sums."""
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN, FashionMNIST

    from otkd.data import cifar10, cifar100, fashion_mnist, svhn, tiny_imagenet

    assert cifar10.ORIGIN.items()[0].md5 == CIFAR10.tgz_md5
    assert cifar100.ORIGIN.items()[0].md5 == CIFAR100.tgz_md5
    assert [item.md5 for item in fashion_mnist.ORIGIN.items()] == [md5 for _, md5 in FashionMNIST.resources]
    given = svhn._origin(svhn.Options(extra=True)).items()
    assert sorted(given) == sorted(Item(url, md5, file) for url, file, md5 in SVHN.split_list.values())
    assert len(svhn._origin(svhn.Options()).items()) == 2
    for item in (*given, *tiny_imagenet.ORIGIN.items(), *fashion_mnist.ORIGIN.items()):
        assert item.url.startswith("http")
        assert len(item.md5) == 32


def only(content: str) -> Any:
    """Of one layout: takes folders whose first training file begins so."""
    return lambda path: "" if path.read_text().startswith(content) else f"has other things; expected {content}"


def test_files_of_another_set_in_the_data_folder_are_passed_over(tmp_path: Path) -> None:
    origin = TOY._replace(layouts=(SHARDS._replace(misfit=only("1")), FOLDERS))
    data = write(tmp_path / "data", train__0=2, test__0=1)
    asked = ask(tmp_path, data)
    assert originals.sources(asked, origin) == []
    (data / "test-0.txt").unlink()
    assert originals.sources(asked, origin) == [], "half of another set is no half of this one"
    write(data / "deeper", train__0=1, test__0=1)
    assert [path.parent.name for path in originals.sources(asked, origin)] == ["deeper"] * 2


@pytest.mark.usefixtures("no_network")
def test_files_of_another_set_are_told(tmp_path: Path) -> None:
    origin = TOY._replace(layouts=(SHARDS._replace(misfit=only("1")),))
    asked = ask(tmp_path, write(tmp_path / "data", train__0=2, test__0=1))
    with pytest.raises(DataError, match=r"(?s)no images under.*train-0\.txt has other things; expected 1"):
        originals.read(asked, origin)
    write(tmp_path / "data" / "toy", train__0=2, test__0=1)
    with pytest.raises(DataError, match=r"^toy: .*toy/train-0\.txt has other things; expected 1"):
        originals.sources(asked, origin)


def test_the_own_folder_comes_first_in_whatever_layout(tmp_path: Path) -> None:
    data = write(tmp_path / "data", train__0=1, test__0=1)
    write_folders(data / "toy")
    assert read(tmp_path, data) == ([9, 1, 2], [9, 4])


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    data = write(tmp_path / "data", train__0=1, test__0=1)
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match=r"data: cannot be read \(Permission denied\)\. Check its permissions"):
        originals.sources(ask(tmp_path, data), TOY)
