"""The cache of decoded images: hits, damage, changed sources, two processes at once."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from otkd.core import plugins
from otkd.core.datasets import DataOptions, Request, request_for
from otkd.core.errors import DataError, OtkdError
from otkd.core.trial import Data
from otkd.data import cache, cifar100
from otkd.data.source import RawSplits

Load = Callable[..., RawSplits]


@pytest.fixture
def load(parquet_dir: Path, tmp_path: Path, tiny: RawSplits) -> Load:
    """Load the small CIFAR-100 with a card that fits."""
    card = replace(cifar100.CARD, train=len(tiny.train.labels), test=len(tiny.test.labels))

    def go(data_dir: Path | None = parquet_dir) -> RawSplits:
        return cache.load(Request("cifar100", DataOptions(), data_dir, tmp_path / "cache"), card)

    return go


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "cifar100"


def assert_same(one: RawSplits, other: RawSplits) -> None:
    for a, b in zip((*one.train, *one.test), (*other.train, *other.test), strict=True):
        assert np.array_equal(a, b)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> RawSplits:
        raise DataError("was read again")

    monkeypatch.setattr(cifar100, "read", refuse)


def array_file(folder: Path, key: str = "train_images") -> Path:
    return next(folder.glob(f"{key}-*.npy"))


def test_hit_reads_nothing(load: Load, monkeypatch: pytest.MonkeyPatch, tiny: RawSplits) -> None:
    assert_same(load(), tiny)
    forbid_reading(monkeypatch)
    assert_same(load(), tiny)


def test_hit_survives_the_source(load: Load, monkeypatch: pytest.MonkeyPatch, tiny: RawSplits) -> None:
    load()
    forbid_reading(monkeypatch)
    assert_same(load(None), tiny)


def test_writing_to_a_loaded_array_does_not_reach_the_cache(load: Load, tiny: RawSplits) -> None:
    load()
    load().train.images[:] = 0
    assert_same(load(), tiny)


def flip_last_byte(folder: Path) -> None:
    data = bytearray(array_file(folder).read_bytes())
    data[-1] ^= 1
    array_file(folder).write_bytes(data)


def truncate(folder: Path) -> None:
    array_file(folder).write_bytes(array_file(folder).read_bytes()[:-10])


def remove_array(folder: Path) -> None:
    array_file(folder, "test_labels").unlink()


def break_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def empty_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("[]")


def swap_arrays(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["arrays"]["train_labels"]["file"] = meta["arrays"]["test_labels"]["file"]
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", [flip_last_byte, truncate, remove_array, break_meta, empty_meta, swap_arrays])
def test_damage_is_repaired_with_a_warning(
    load: Load, folder: Path, tiny: RawSplits, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    load()
    damage(folder)
    with caplog.at_level(logging.WARNING):
        assert_same(load(), tiny)
    assert "damaged" in caplog.text
    caplog.clear()
    assert_same(load(), tiny)
    assert not caplog.records


def test_changed_source_is_read_anew(
    load: Load, folder: Path, parquet_dir: Path, tiny: RawSplits, caplog: pytest.LogCaptureFixture
) -> None:
    load()
    old = array_file(folder)
    shards = sorted((parquet_dir / "cifar100").glob("train-*.parquet"))
    shards[0].rename(parquet_dir / "cifar100" / "train-00009-of-00002.parquet")
    again = load()
    assert np.array_equal(again.train.labels, np.roll(tiny.train.labels, 2))
    assert "have changed" in caplog.text
    assert not old.exists()
    assert len(list(folder.glob("*.npy"))) == 4


def test_unwritable_cache_only_warns(
    load: Load, folder: Path, tiny: RawSplits, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.write_text("a file where the folder should be")
    assert_same(load(), tiny)
    assert "without a cache" in caplog.text


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from otkd.core.datasets import request_for;"
        "from otkd.core.trial import Data;"
        "from otkd.data import cache; data = Data(name='digits');"
        "print(int(cache.load(request_for(data, None, Path(sys.argv[1])), data.card).train.labels.sum()))"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    answers = {worker.communicate(timeout=60)[0] for worker in workers}
    assert len(answers) == 1
    assert all(worker.returncode == 0 for worker in workers)
    assert len(list((tmp_path / "digits").glob("*.npy"))) == 4


def test_unknown_data_set_gets_nearest_match(tmp_path: Path) -> None:
    with pytest.raises(OtkdError, match="Did you mean 'cifar100'"):
        cache.load(Request("cifar1000", DataOptions(), None, tmp_path), cifar100.CARD)


def test_options_have_caches_of_their_own(tmp_path: Path) -> None:
    plain, extra = (
        cache.place(request_for(Data(name="svhn", options=options), None, tmp_path))
        for options in ({}, {"extra": True})
    )
    assert plain == tmp_path / "svhn"
    assert extra.parent == tmp_path
    assert extra != plain


def test_no_two_names_have_one_folder(tmp_path: Path) -> None:
    options = DataOptions()
    extra = cache.place(request_for(Data(name="svhn", options={"extra": True}), None, tmp_path)).name
    names = ["parquet/a/b", "parquet/a-b", "parquet/a%2Fb", "parquet/a+b", "parquet/a%2Bb", "parquet/" + "é" * 300]
    names += ["parquet/" + "é" * 301, extra.replace("svhn", "parquet/a"), "parquet/a"]
    places = [cache.place(Request(name, options, None, tmp_path)) for name in names]
    assert len(set(places)) == len(names)
    assert all(place.parent == tmp_path and len(str(place.name).encode()) < 255 for place in places)


def test_equal_names_sizes_and_times_elsewhere_are_other_files(
    load: Load, parquet_dir: Path, tmp_path: Path, tiny: RawSplits
) -> None:
    load()
    other = Path(shutil.copytree(parquet_dir, tmp_path / "other"))
    shard = other / "cifar100" / "test-00000-of-00001.parquet"
    table = pq.read_table(shard)
    before = shard.stat()
    pq.write_table(table.set_column(1, "fine_label", pa.array(tiny.test.labels[::-1])), shard)
    assert shard.stat().st_size == before.st_size
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert np.array_equal(load(other).test.labels, tiny.test.labels[::-1])


def test_a_data_folder_spelt_otherwise_is_the_same(
    load: Load, parquet_dir: Path, tmp_path: Path, tiny: RawSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    (tmp_path / "link").symlink_to(parquet_dir)
    monkeypatch.chdir(parquet_dir.parent)
    forbid_reading(monkeypatch)
    assert_same(load(tmp_path / "link"), tiny)
    assert_same(load(Path(parquet_dir.name)), tiny)


def test_other_code_reads_anew(load: Load, tiny: RawSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    monkeypatch.setattr(cache, "reader", lambda plugin: f"other code of {plugin}")
    forbid_reading(monkeypatch)
    with pytest.raises(DataError, match="was read again"):
        load()


@pytest.mark.parametrize(
    ("plugin", "needed", "not_needed"),
    [
        ("cifar100", {"cifar100", "originals", "tables", "cifar", "pickles", "source"}, {"svhn", "augment", "stream"}),
        ("parquet", {"parquet", "shards", "tables", "blob", "listing"}, {"cifar", "originals", "folder"}),
        ("digits", {"digits", "source"}, {"tables", "originals"}),
    ],
)
def test_the_code_that_reads(
    plugin: str, needed: set[str], not_needed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file changed in a copy of the folder: the plug-in, and what it imports."""
    copy = Path(shutil.copytree(cache.HERE, tmp_path / "data"))
    monkeypatch.setattr(cache, "HERE", copy)
    monkeypatch.setattr(plugins, "source", lambda group, name: copy / f"{name}.py")
    before = cache.reader(plugin)

    def counts(name: str) -> bool:
        file = copy / f"{name}.py"
        text = file.read_bytes()
        file.write_bytes(text + b"\n# changed\n")
        changed = cache.reader(plugin) != before
        file.write_bytes(text)
        return changed

    assert {name for name in needed | not_needed if counts(name)} == needed
