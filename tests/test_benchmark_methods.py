"""The benchmark of the losses runs, and its tables say what was measured."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from otkd.core import plugins

ROOT = Path(__file__).parents[1]

STAGED = '''
"""A term that trains a projection before the main stage."""

from otkd.core.config import TermConfig

class Config(TermConfig):
    """A projection."""


from torch import nn

from otkd.losses.base import LossOutput, Stage, TermLoss


class Loss(TermLoss):
    needs_preparation = True

    def __init__(self, config, probe):
        super().__init__(config, probe)
        assert probe.classifier_t.shape == (100, 64) and len(probe.labels_N) == 50000 and len(probe.norms_t) == 3
        self.linear = nn.Linear(probe.student.embedding.shape[1], 7, bias=False)
        self.seen = 0

    @property
    def stages(self):
        return Stage("first", 4, 0.01), Stage("second", 2, 0.01, student=False)

    def observe(self, batch, out_t):
        self.seen += len(batch.target)

    def pretrain(self, out_s, out_t, batch):
        assert self.seen == 200
        out = out_t if out_s is None else out_s
        return LossOutput(self.linear(out.embedding).square().mean())

    def forward(self, out_s, out_t, batch):
        return LossOutput(self.linear(out_s.embedding).square().mean())
'''

BROKEN = '''
"""A term that cannot be built."""

from otkd.core.config import TermConfig


class Config(TermConfig):
    """Nothing."""


from otkd.losses.base import TermLoss


class Loss(TermLoss):
    def __init__(self, config, probe):
        raise ValueError("no such luck")
'''

PICKY = '''
"""A term that no pair is good enough for."""

from otkd.core.config import TermConfig
from otkd.core.errors import Problem


class Config(TermConfig):
    """Nothing."""

    def check(self, student, teacher):
        yield from super().check(student, teacher)
        yield Problem("", f"the teacher is {teacher.embedding} wide | too wide.")
'''


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.methods")


class Run(NamedTuple):
    printed: list[dict[str, str]]
    records: list[dict[str, Any]]
    conditions: dict[str, str]
    saved: str
    stdout: str


def table(text: str) -> list[dict[str, str]]:
    (found,) = re.findall(r"^## .*\n\n((?:\|.*\n?)+)", text, re.MULTILINE)
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in found.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One quick run in a copy of the package that has three losses more."""
    folder = tmp_path_factory.mktemp("bench")
    for package in ("otkd", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name, text in {"staged": STAGED, "broken": BROKEN, "picky": PICKY}.items():
        (folder / "otkd" / "losses" / f"{name}.py").write_text(text, encoding="utf-8")
    options = ["--quick", "--threads", "1", "--save", "--only", "ce", "kd", "staged", "broken", "picky"]
    done = subprocess.run(
        [sys.executable, folder / "benchmarks" / "methods.py", *options],
        cwd=folder, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "benchmarks" / "results").glob("methods-*.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    (only,) = content["tables"]
    saved = path.with_suffix(".md").read_text(encoding="utf-8")
    return Run(table(done.stdout), only["records"], content["conditions"], saved, done.stdout)


def test_every_stage_has_its_row(bench: Run) -> None:
    labels = ["ce + kd", "ce", "ce + staged", "ce + staged, stage first", "ce + staged, stage second"]
    labels += ["ce + broken", "ce + picky"]
    assert [row["method"] for row in bench.printed] == [record["method"] for record in bench.records] == labels


def test_what_was_measured_is_what_is_printed_and_saved(bench: Run) -> None:
    assert table(bench.saved) == bench.printed
    assert bench.conditions["threads"] == "1"
    assert bench.conditions["device"].endswith("(cpu)")
    assert bench.conditions.keys() == {"device", "threads", "torch", "Python", "date", "batch"}
    assert f"- date: {bench.conditions['date']}" in bench.stdout
    for row, record in zip(bench.printed[:5], bench.records[:5], strict=True):
        assert float(row["step ms"]) == pytest.approx(record["step_ms"], rel=0.03)
        assert float(row["/ kd"]) == pytest.approx(record["over_kd"], rel=0.03)
        assert float(row["ms"].split("±")[0]) == pytest.approx(record["ms"], rel=0.03)


def test_who_needs_no_teacher_pays_for_none(bench: Run) -> None:
    kd, ce, staged, *_ = bench.records
    assert kd["over_kd"] == 1
    assert ce["step_ms"] == ce["ms"] > 0
    assert staged["step_ms"] - staged["ms"] == pytest.approx(kd["step_ms"] - kd["ms"])
    assert kd["step_ms"] > kd["ms"]


def test_parameters_and_memory_are_the_terms(bench: Run) -> None:
    """The stage without the student keeps none of its activations."""
    assert [record["parameters"] for record in bench.records] == [0, 0, 7 * 64, 7 * 64, 7 * 64, None, None]
    kd, ce, *_, without_student = bench.records[:5]
    assert kd["mib_beyond_kd"] == 0
    assert abs(ce["mib_beyond_kd"]) < 0.5
    assert without_student["mib_beyond_kd"] < -10


def test_a_term_that_cannot_run_says_why(bench: Run) -> None:
    broken, picky = bench.printed[5:]
    assert broken["note"] == "ValueError: no such luck"
    assert picky["note"] == "the teacher is 64 wide / too wide."
    assert broken["ms"] == picky["ms"] == picky["/ kd"] == "–"


def test_every_loss_is_found(methods: Any) -> None:
    found = methods.objectives(plugins.names("losses"))
    assert found[0] == methods.BASE == {"ce": {}, "kd": {}}
    assert found.count(methods.BASE) == 1
    assert {name for terms in found for name in terms} == set(plugins.names("losses"))
    assert all("ce" in terms for terms in found)


def test_what_a_pair_makes_impossible_is_said(methods: Any) -> None:
    assert methods.problems({"ce": {}, "transport": {"projection": "none"}}, ("wrn_16_2", "wrn_40_2")) == []
    (problem,) = methods.problems({"ce": {}, "transport": {"projection": "none"}}, ("resnet8", "wrn_40_2"))
    assert problem.path == "projection"
    record = methods.refusal("ce + transport", "a | b")
    assert record.keys() == methods.compared(*one_entry(methods))[0].keys()
    assert methods.row(record) == {
        "method": "ce + transport",
        **dict.fromkeys(["ms", "step ms", "/ kd", "MiB", "parameters"], "–"),
        "note": "a / b",
    }


def one_entry(methods: Any) -> tuple[Any, ...]:
    return [methods.Entry("kd", lambda: None, True, 0)], {"": [1.0], "kd": [2.0]}, {"kd": 3.0}


def test_ratios_by_hand(methods: Any) -> None:
    """Medians 4 (teacher), 6 and 3; one looks at the teacher: 10 and 3; quartiles of 5, 6, 9 lie at 5.5 and 7.5."""
    entries = [methods.Entry("kd", lambda: None, True, 0), methods.Entry("ce", lambda: None, False, 5)]
    times = {"": [9.0, 4.0, 1.0], "kd": [5.0, 9.0, 6.0], "ce": [3.0, 3.0, 3.0]}
    kd, ce = methods.compared(entries, times, {"kd": 20.0, "ce": 17.5})
    assert (kd["ms"], kd["spread_ms"], kd["step_ms"], kd["over_kd"]) == (6, 1, 10, 1)
    assert (ce["ms"], ce["step_ms"], ce["over_kd"], ce["mib_beyond_kd"], ce["parameters"]) == (3, 3, 0.3, -2.5, 5)
    assert methods.row(kd)["ms"] == "6±1"


def test_stages_lie_before_the_main_one(methods: Any) -> None:
    assert [methods.tick(stage, [4, 2]) for stage in (None, 0, 1)] == [1, -5, -1]


def test_options(methods: Any) -> None:
    options = methods.parsed(["--only", "ce", "kd"])
    assert (options.only, options.threads, options.device, options.quick, options.save) == (
        ["ce", "kd"], 1, "cpu", False, False,
    )  # fmt: skip
