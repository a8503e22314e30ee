"""The benchmark of the engine runs, its loops do the same work, and its tables say what was measured."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Data

ROOT = Path(__file__).parents[1]
TINY = {"classes": 100, "side": 8, "train": 230, "test": 37}


class Run(NamedTuple):
    printed: dict[str, list[dict[str, str]]]
    """Title → rows of text by column."""
    records: dict[str, list[dict[str, Any]]]
    """Title → rows as in the JSON file."""
    saved: str
    conditions: dict[str, str]


def tiny() -> Data:
    return Data.model_validate({"name": "synthetic", "options": TINY, "augment": {"pad": 4, "flip": True}})


@pytest.fixture(autouse=True, scope="module")
def benchmarks() -> Iterator[None]:
    """The package can be imported, and whatever a benchmark sets is as it was afterwards."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
            patch.setenv(name, os.environ[name])
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A quick run on tiny images."""
    train = importlib.import_module("benchmarks.train")
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "images", lambda options: tiny())
        patch.setattr(train, "QUICK_EFFORT", (2, 1))
        patch.setattr("benchmarks.ot.HERE", folder)
        patch.delenv("OTKD_DATA_DIR", raising=False)
        assert b"x" * 2**30  # once so large, this process has passed its peak on to others that misread theirs
        train.main(["--quick", "--save", "--threads", "1", "--precision", "fp32"])
    (path,) = (folder / "results").glob("train-*.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    saved = path.with_suffix(".md").read_text(encoding="utf-8")
    records = {table["title"]: table["records"] for table in content["tables"]}
    return Run(tables(saved), records, saved, content["conditions"])


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    found = {}
    for title, table in re.findall(r"^## (.*)\n\n((?:\|.*\n?)+)", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" |")] for line in table.splitlines())
        found[title] = [dict(zip(header, row, strict=True)) for row in rows]
    return found


def rows(bench: Run, title: str) -> list[dict[str, Any]]:
    (found,) = (records for name, records in bench.records.items() if name.startswith(title))
    return found


PAIR = "resnet8 ← resnet20"


@pytest.mark.long
def test_every_table_is_complete(bench: Run) -> None:
    assert list(bench.printed) == list(bench.records)
    assert [row["method"] for row in rows(bench, f"{PAIR}: one")] == ["kd", "fitnet", "attention", "transport"]
    assert [row["members"] for row in rows(bench, f"{PAIR}: cohorts")] == ["1", "2", "4", "8"]
    assert [row["processes"] for row in rows(bench, "memory")] == ["one", "two at once"]
    assert len(rows(bench, f"{PAIR}: six")) == len(rows(bench, "start")) == 1
    assert not any(value is None for records in bench.records.values() for row in records for value in row.values())
    assert {"torch", "torchvision", "threads", "device", "data", "batch", "engine and floor"} <= bench.conditions.keys()
    assert (bench.conditions["threads"], bench.conditions["engine and floor"]) == ("1", "fp32")


@pytest.mark.long
def test_ratios_are_ratios_of_the_rates(bench: Run) -> None:
    for row in rows(bench, f"{PAIR}: one"):
        for loop in ("plain floor", "fast floor", "classic"):
            assert row[f"/ {loop}"] == pytest.approx(row["engine images/s"] / row[f"{loop} images/s"])
    (six,) = rows(bench, f"{PAIR}: six")
    assert six["one by one / cohort"] == pytest.approx(six["one by one s"] / six["cohort s"])
    assert six["classic / cohort"] == pytest.approx(six["classic s"] / six["cohort s"])


@pytest.mark.long
def test_engine_and_floor_compute_the_same_loss(bench: Run) -> None:
    """In fp32 they differ by rounding alone: the teacher's batch norm is folded on one side."""
    assert all(row["loss off by"] < 1e-5 for row in rows(bench, f"{PAIR}: one"))


@pytest.mark.long
def test_every_target_is_judged_by_what_was_measured(bench: Run) -> None:
    (title,) = (title for title in bench.records if title.startswith("targets"))
    found = bench.records[title]
    # four methods × (two floors, the loss), twice for the cohort of six, two for the start, two for memory
    assert len(found) == 4 * 3 + 2 + 2 + 2
    for row in found:
        sign, bound = row["bound"].split()
        holds = row["figure"] <= float(bound) if sign == "≤" else row["figure"] >= float(bound)
        assert row["holds"] == ("yes" if holds else "no"), row
    assert title == f"targets: {sum(row['holds'] == 'yes' for row in found)} of {len(found)} hold"
    figures = {row["figure"] for row in found}
    assert {row["/ plain floor"] for row in rows(bench, f"{PAIR}: one")} <= figures
    assert {row["peak_rss_mib"] for row in rows(bench, "memory")} <= figures


@pytest.mark.long
def test_memory_adds_up(bench: Run) -> None:
    """What is private is part of the share, which is part of what is resident."""
    for row in rows(bench, "memory"):
        assert 50 < row["private_mib"] <= row["pss_mib"] <= row["rss_mib"] <= 1.01 * row["peak_rss_mib"]
        assert row["peak_rss_mib"] < row["rss_mib"] + 400, "the peak is its own"


def test_a_pair_is_clocked_by_medians() -> None:
    """By hand: medians 2 s and 0.5 s for 100 images; three members of 1 s each against 2 s together."""
    speed = importlib.import_module("benchmarks.training.speed")
    times = {"engine: kd": [9000.0, 2000.0, 1000.0], "fast": [500.0]}
    clocked = speed.Clocked("s ← t", 100, times, {})
    assert (clocked.rate("engine: kd"), clocked.rate("fast"), clocked.ms("engine: kd", "fast")) == (50, 200, 2500)
    cohorts = {speed.cohort_of(size): [ms] for size, ms in ((1, 1000.0), (4, 2000.0))}
    record = speed.scaled(speed.Clocked("s ← t", 100, cohorts, {}), 4)
    assert record == {"members": "4", "images/s × members": 200, "/ one": 2}


def test_the_classic_loop_sees_every_image_of_a_round(tmp_path: Path) -> None:
    """One batch before the clock starts, then as many images as an epoch has, all augmented one by one."""
    loops, scene = made_scene(tmp_path, steps=2)
    classic = loops.Classic(scene, scene_methods()["kd"])
    with classic.round() as call:
        assert classic.meters["loss"].count == 64
        call()
    assert classic.meters["loss"].count == 64 + len(scene.splits.train.labels) == 64 + 128
    image = classic.photographs[0][0]
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.float32
    assert 0 <= classic.meters["top1"].total <= classic.meters["top5"].total <= 100 * classic.meters["top5"].count


def test_floors_differ_in_nothing_but_speed(tmp_path: Path) -> None:
    loops, scene = made_scene(tmp_path, steps=2)
    plain, fast = (loops.Floor(scene, scene_methods()["kd"], fast=fast) for fast in (False, True))
    batches = list(scene.batches.epoch(3))
    assert plain.mean_loss(batches) == pytest.approx(fast.mean_loss(batches), rel=1e-4)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in plain.teacher.modules()) > 10
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.teacher.modules())


def made_scene(folder: Path, steps: int) -> tuple[Any, Any]:
    training = importlib.import_module("benchmarks.training.scene")
    place = training.Place(folder, None, torch.device("cpu"), 1, "fp32")
    scene = training.Scene(place, tiny(), (PAIR.split(" ← ")), steps)
    scene.train_teacher()
    return importlib.import_module("benchmarks.training.loops"), scene


def scene_methods() -> Any:
    return importlib.import_module("benchmarks.training.scene").METHODS


def test_a_member_that_ends_stops_the_benchmark(tmp_path: Path) -> None:
    loops, scene = made_scene(tmp_path, steps=2)
    with pytest.raises(RuntimeError, match="has diverged"):
        loops.Engine(scene, [{"ce": {"weight": 1e38}, "kd": {"weight": 1e38}}])


def result(key: str, top1: float, seconds: float, loss: float = 1.5) -> TrialResult:
    epoch = EpochRecord(key=key, epoch=1, epochs=1, metrics={"train/loss": loss, "time/own_s": seconds}, time=0.0)
    return TrialResult(
        key=key, status="finished", started=0.0, ended=1.0, epochs=(epoch,),
        metrics={"test/last/top1": top1, "time/wall_s": seconds},
    )  # fmt: skip


def test_sweeps_that_differ_in_a_bit_are_told() -> None:
    sweeps = importlib.import_module("benchmarks.training.sweeps")

    def of(*results: TrialResult) -> Any:
        return {one.key: sweeps.figures(one) for one in results}

    sweeps.complain(of(result("a", 71.0, 3.0)), of(result("a", 71.0, 4.0)))  # times may differ
    for other in (result("a", 71.00000000000001, 3.0), result("a", 71.0, 3.0, loss=1.6)):
        with pytest.raises(RuntimeError, match="trial a differs"):
            sweeps.complain(of(result("a", 71.0, 3.0)), of(other))
    for other in (of(), of(result("b", 71.0, 3.0)), of(result("a", 71.0, 3.0), result("b", 71.0, 3.0))):
        with pytest.raises(RuntimeError, match="not the same trials"):
            sweeps.complain(of(result("a", 71.0, 3.0)), other)


def test_a_sweep_needs_cifar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("OTKD_DATA_DIR", raising=False)
    with pytest.raises(SystemExit):
        importlib.import_module("benchmarks.train").parsed(["--sweep"])
    assert "--data-dir" in capsys.readouterr().err
