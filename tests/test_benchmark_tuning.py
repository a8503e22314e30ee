"""The benchmark of the search compares the same trials both ways, and counts what their records say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Trial
from otkd.sweep.journal import journal_file
from otkd.sweep.plan import Plan, make
from otkd.sweep.search import Search
from otkd.sweep.spec import load
from otkd.track.jsonl import JsonlSink

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def halving() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks.sweeping import halving

        yield halving


@pytest.fixture
def plans(halving: ModuleType, tmp_path: Path) -> tuple[Plan, Plan]:
    """The grid, and the search of it."""

    def planned(tree: dict[str, object], file: Path) -> Plan:
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return make(load(file))

    trees = {"grid": halving.smaller(halving.QUICK), "asha": halving.searched(halving.QUICK)}
    grid, asha = (planned(tree, tmp_path / f"{name}.yaml") for name, tree in trees.items())
    return grid, asha


def test_the_candidates_of_the_search_are_the_trials_of_the_grid(plans: tuple[Plan, Plan]) -> None:
    grid, asha = plans
    candidates = [item for study in asha.studies for one in asha.known(study) for item in one.planned]
    assert [item.trial.key for item in candidates] == [item.trial.key for item in grid.students]
    assert asha.teachers[0].trial.key == grid.teachers[0].trial.key
    assert len(candidates) == 2 * 2 + 1 * 1 * 4


def test_a_grid_lies_within_what_the_sweep_searches(halving: ModuleType) -> None:
    space = Search.model_validate({"space": {"x": {"loguniform": [0.01, 100]}, "y": {"choice": ["a", 3]}}}).space
    assert halving.values(space["x"], 2) == [0.1, 10.0]  # the middle of each half of four decades
    assert halving.values(space["y"], 2) == ["a", 3]


def test_epochs_and_the_best_come_from_the_records(
    halving: ModuleType, plans: tuple[Plan, Plan], tmp_path: Path
) -> None:
    """Four configurations of kd: two finished after three epochs, one stopped after one, one never begun."""
    plan, layout = plans[0], Layout(tmp_path / "runs")
    own = [item.trial for item in plan.students if item.label.method == "kd"]
    sink = JsonlSink(journal_file(layout, plan.info.name))
    for trial, val, epochs in (
        (plan.teachers[0].trial, 90.0, 5),
        (own[0], 40.0, 3),
        (own[1], 50.0, 3),
        (own[2], 60.0, 1),
    ):
        play(sink, layout, trial, val, epochs, finished=epochs > 1)
    sink.close()
    found = halving.read(plan, layout)
    assert found.epochs == {"kd": 7}
    assert found.best == {"kd": 50.0}
    assert found.configurations == {"kd": 4, "ot": 4}
    assert found.seconds == 10 * (3 - 1) + 4 + 1  # the first epoch began five seconds before it was told
    line = halving.beside("kd", {"grid": found, "asha": found._replace(best={"kd": 47.5})}, 400)
    assert line["±"] == math.sqrt(50 * 50 / 400)
    assert line["behind / ±"] == 1.0


def play(sink: JsonlSink, layout: Layout, trial: Trial, val: float, epochs: int, finished: bool) -> None:
    sink.start(trial)
    metrics = {names.VAL_TOP1: val, names.EPOCH_S: 4.0, names.EVAL_S: 1.0}
    for epoch in range(1, epochs + 1):
        sink.epoch(EpochRecord(key=trial.key, epoch=epoch, epochs=epochs, metrics=metrics, time=100.0 + 10 * epoch))
    folder = layout.trial(trial.key)
    folder.path.mkdir(parents=True)
    if finished:
        best = {names.BEST_VAL_TOP1: val}
        result = TrialResult(key=trial.key, status="finished", metrics=best, started=100.0, ended=200.0)
        folder.result.write_text(json.dumps(result.model_dump(mode="json")), encoding="utf-8")
