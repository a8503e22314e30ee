"""The benchmark of the transport solvers runs, and its tables say what was measured."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[1]

INDEPENDENT = '''
"""The plan that knows nothing: each point of x goes everywhere."""

from otkd.core.config import SolverConfig
from otkd.ot.problem import read, transport_cost
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """The independent coupling."""

    name: str = "independent"
    """The plug-in's file name without `.py`."""


def solve(cost_BNM, a_BN, b_BM, config):
    problem = read(cost_BNM, a_BN, b_BM)
    plan = (problem.a_BN[:, :, None] * problem.b_BM[:, None, :]).reshape(cost_BNM.shape)
    value = transport_cost(cost_BNM, plan)
    return TransportResult(value, plan, None, 0, value.detach() * 0, value.detach() == value.detach())
'''


class Run(NamedTuple):
    printed: dict[str, list[dict[str, str]]]
    """Title → rows of text by column."""
    records: dict[str, list[dict[str, Any]]]
    """Title → rows as in the JSON file."""
    folder: Path


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    found = {}
    for title, table in re.findall(r"^## (.*)\n\n((?:\|.*\n?)+)", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" |")] for line in table.splitlines())
        found[title] = [dict(zip(header, row, strict=True)) for row in rows]
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One quick run in a copy of the package that has one solver more."""
    folder = tmp_path_factory.mktemp("bench")
    ignore = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "otkd", folder / "otkd", ignore=ignore)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=ignore)
    (folder / "otkd" / "ot" / "independent.py").write_text(INDEPENDENT, encoding="utf-8")
    options = ["--quick", "--threads", "1", "--device", "cpu", "--save"]
    asked = ["--only", "every", "exact", "sinkhorn", "step", "--sizes", "16"]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "2"}  # --threads goes before
    done = subprocess.run(
        [sys.executable, folder / "benchmarks" / "ot.py", *options, *asked],
        cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (saved,) = (folder / "benchmarks" / "results").glob("ot-*.json")
    content = json.loads(saved.read_text(encoding="utf-8"))
    assert content["conditions"]["threads"] == "1"
    return Run(tables(done.stdout), {table["title"]: table["records"] for table in content["tables"]}, folder)


def comparisons(run: Run) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Rows of the tables that compare codes, as printed and as saved."""
    titles = [title for title in run.records if title.startswith(("exact", "sinkhorn"))]
    assert len(titles) == 3
    return [pair for title in titles for pair in zip(run.printed[title], run.records[title], strict=True)]


def leading(cell: str) -> float:
    match = re.match(r"(?:✗ )?([\d.e+-]+)±", cell)
    assert match, cell
    return float(match[1])


def test_every_problem_has_its_row(bench: Run) -> None:
    problems = ["16 × 16, d = 64", "2 of 64 × 64, d = 64", "2 histograms on 100 classes"]
    for title in bench.records:
        if title.startswith(("exact", "sinkhorn")):
            assert [row["problem"] for row in bench.printed[title]] == problems
    for row, _ in comparisons(bench):
        assert leading(row["otkd ms"]) > 0


def test_what_is_printed_is_what_is_saved(bench: Run) -> None:
    (saved,) = (bench.folder / "benchmarks" / "results").glob("ot-*.md")
    assert tables(saved.read_text(encoding="utf-8")) == bench.printed


def test_ratios_are_ratios_of_the_printed_times(bench: Run) -> None:
    others = ("otkd ms", "floor ms", "forward only ms")
    for row, _ in comparisons(bench):
        peers = [cell for column, cell in row.items() if column.endswith(" ms") and column not in others]
        counted = [leading(cell) for cell in peers if not cell.startswith(("✗", "n/a"))]
        ours = leading(row["otkd ms"])
        assert float(row["fastest peer / otkd"]) == pytest.approx(min(counted) / ours, rel=0.03)
        assert float(row["otkd / floor"]) == pytest.approx(ours / float(row["floor ms"]), rel=0.03)


def test_only_codes_with_a_gradient_enter_the_ratio(bench: Run) -> None:
    for row, record in comparisons(bench):
        timed = [peer for peer in record["peers"] if peer["ms"] and peer["reached"]]
        numpy = [peer["ms"] for peer in timed if peer["label"].endswith("numpy")]
        assert [peer["ms"] for peer in timed if not peer["backward"]] == numpy
        assert record["peer_over_otkd"] == pytest.approx(
            min(peer["ms"] for peer in timed if peer["backward"]) / record["otkd"]["ms"]
        )
        assert leading(row["forward only ms"]) == pytest.approx(min(numpy), rel=0.03)


def test_all_codes_solve_the_same_problem(bench: Run) -> None:
    """Truth: solutions in float64, certified by their marginals (`sinkhorn`) or by the network simplex (`exact`)."""
    for _, record in comparisons(bench):
        for code in (record["otkd"], *record["peers"]):
            if code["ms"] is not None:
                asked = record["tolerance"] is not None
                assert code["value_error"] < (1e-3 if asked and code["reached"] else 3e-2), (code, record["problem"])
                assert not (asked and code["reached"]) or code["marginal_error"] <= 1.01e-4


def test_memory_is_measured(bench: Run) -> None:
    """Plans of 2 × 64 × 64 in float32 have to stand somewhere."""
    for row, record in comparisons(bench):
        if row["problem"].startswith("2 of 64"):
            assert record["otkd"]["peak_mib"] > 2 * 64 * 64 * 4 / 2**20


def test_a_new_solver_has_its_rows(bench: Run) -> None:
    (title,) = (title for title in bench.records if title.startswith("every solver"))
    rows = [row for row in bench.printed[title] if row["solver"] == "independent"]
    assert [(row["n"], row["converged"]) for row in rows] == [("16", "yes")]
    for row in rows:
        assert float(row["ms / floor"]) == pytest.approx(float(row["ms"]) / float(row["floor ms"]), rel=0.03)


def targets(run: Run, claim: str) -> tuple[str, list[dict[str, str]]]:
    (title,) = (title for title in run.printed if title.startswith(f"target: {claim}"))
    return title, run.printed[title]


def test_targets_are_judged_by_the_measured_ratios(bench: Run) -> None:
    found = [record for _, record in comparisons(bench)]
    for claim, kept in (("sinkhorn is never slower", True), ("no other solver is slower", False)):
        title, rows = targets(bench, claim)
        records = [record for record in found if (record["solver"] == "sinkhorn") == kept]
        records.sort(key=lambda record: (record["peer_over_otkd"] >= 1, record["peer_over_otkd"]))
        ratios = [record["peer_over_otkd"] for record in records]
        assert [float(row["figure"]) for row in rows] == pytest.approx(ratios, rel=0.03)
        assert [row["holds"] for row in rows] == ["yes" if ratio >= 1 else "no" for ratio in ratios]
        assert title.endswith(f": {sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} hold")
        bounds = [ratio * record["otkd_over_floor"] for ratio, record in zip(ratios, records, strict=True)]
        assert [float(row["at the floor"]) for row in rows] == pytest.approx(bounds, rel=0.03)


def test_sinkhorn_is_held_to_the_methods_of_sinkhorn2(bench: Run) -> None:
    _, rows = targets(bench, "sinkhorn is at least 5 ×")
    assert len(rows) == 6
    for row in rows:
        assert row["where"].startswith("sinkhorn")
        assert re.fullmatch("POT sinkhorn2 .* torch", row["against"])
        assert row["holds"] == ("yes" if float(row["figure"]) >= 5 else "no")


def test_a_step_with_transport_is_held_to_one_with_kd(bench: Run) -> None:
    (title,) = (title for title in bench.records if title.startswith("a training step"))
    base, other = bench.records[title]
    _, (row,) = targets(bench, "a training step")
    assert row["holds"] == ("yes" if other["ms"] / base["ms"] <= 1.05 else "no")


def test_who_keeps_too_much_or_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One matrix of 1 MiB that `exp` saves fits a tape of 1 MiB, two do not."""
    monkeypatch.syspath_prepend(ROOT)
    measure = importlib.import_module("benchmarks.transport.measure")
    x = torch.zeros(512, 512, requires_grad=True)
    with measure.limited_tape(2**20):
        x.exp()
    with pytest.raises(MemoryError, match="tape"), measure.limited_tape(2**20):
        x.exp().exp()
    with measure.limited_tape(2**20):
        y = x.exp()
    gone = weakref.ref(y.untyped_storage())
    del y
    assert gone() is None, "what it kept is let go of"
    with pytest.raises(TimeoutError), measure.patience(0.05):
        time.sleep(1)


def test_only_larger_problems_of_the_same_kind_are_given_up_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    make = functools.partial(
        importlib.import_module("benchmarks.transport.problems").random_problem, "", device=torch.device("cpu")
    )
    small = make(5, 4)
    assert all(make(*shape).exceeds(small) for shape in ((5, 4), (6, 4), (5, 7)))
    assert not any(make(*shape).exceeds(small) for shape in ((4, 7), (6, 3), (2, 6, 4)))
    assert not make(6, 4, weights=2).exceeds(make(2, 5, 4))
