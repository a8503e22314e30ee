"""A search whose driver is killed: the same command comes to the same winner, and trains nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import DETERMINED, QUESTION, Sweep, check_weights, histories, role, runs, weights
from torch import Tensor

from otkd.core.layout import Layout

SEARCH: dict[str, Any] = {
    **QUESTION,
    "data": {"name": "digits", "val": 0.2, "limit": 240},
    "train": {"epochs": 4, "batch_size": 16, "schedule": {"name": "constant"}},
    "methods": {"student": {"ce": 1}},
    "seeds": [0],
    "search": {
        "kind": "optuna",
        "space": {"methods.student.ce.weight": {"loguniform": [1e-5, 1]}},
        "samples": 5,
        "scheduler": {"name": "asha", "grace": 1, "factor": 2},
        "final": {"seeds": 1},
    },
    "resources": {"cpu": 999},
}
"""One configuration at a time, so that what is stopped depends on nothing but what came before."""
PATIENCE_S = 900
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)


class Left(NamedTuple):
    """What a search leaves, as far as it is determined."""

    log: list[dict[str, Any]]
    """The configurations, and how each ended."""
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    """Trial key → metric → (epoch, value), as MLflow has them."""
    roles: Counter[str]
    states: dict[str, str]
    """Trial key → the state of its run."""
    weights: dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Left]:
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), question=SEARCH)
    sweep.provide(database)
    try:
        run(sweep)
        yield left(sweep)
    finally:
        sweep.close()


def test_the_driver_is_killed_in_the_middle_of_a_search(begin: Callable[..., Sweep], undisturbed: Left) -> None:
    statuses = Counter(line.get("status") for line in undisturbed.log)
    assert statuses["finished"] and statuses["pruned"], undisturbed.log  # noqa: PT018
    sweep = begin(question=SEARCH).start()
    sweep.wait_until(lambda: len(lines(sweep.layout, "begin")) == 3, PATIENCE_S)
    decided = stamps(sweep)
    sweep.kill()
    assert decided
    assert lines(sweep.layout, "over") == []
    run(sweep)
    check(sweep, undisturbed)
    assert {file: stamp for file, stamp in stamps(sweep).items() if file in decided} == decided
    assert "nothing to do" in sweep.finish()


def run(sweep: Sweep) -> None:
    """The command to its end, which takes as long as several sweeps of the other tests."""
    assert sweep.start().wait(PATIENCE_S) == 0, sweep.output


def check(sweep: Sweep, expected: Left) -> None:
    """The same configurations, ends and winners, every epoch once, and the same weights bit for bit."""
    found = left(sweep)
    assert found.log == expected.log
    assert found.roles == expected.roles
    assert found.states == expected.states
    assert found.curves == expected.curves
    epochs = Counter((event["key"], event["epoch"]) for event in sweep.journal("epoch"))
    assert set(epochs.values()) == {1}
    assert {key for key, _ in epochs} == expected.curves.keys()
    assert Counter(event["key"] for event in sweep.journal("finish")) == Counter(expected.curves.keys())
    check_weights(found.weights, expected.weights)


def left(sweep: Sweep) -> Left:
    """What a search that has ended leaves."""
    told = [line for kind in ("begin", "end") for line in lines(sweep.layout, kind)]
    for line in told:
        line["reports"] = [report[:3] for report in line.get("reports", ())]  # without the hours
    found = histories(sweep)
    curves = {key: {name: own[name] for name in DETERMINED if name in own} for key, own in found.items()}
    states = {role(run): run.info.status for run in runs(sweep)}
    return Left(told, curves, Counter(map(role, runs(sweep))), states, weights(sweep.layout))


def lines(layout: Layout, event: str) -> list[dict[str, Any]]:
    """What the log of the search says of one kind."""
    texts = [text for file in (layout.root / "search").glob("*.jsonl") for text in file.read_text().splitlines(True)]
    told = [json.loads(text) for text in texts if text.endswith("\n")]
    return [line for line in told if line["event"] == event]


def stamps(sweep: Sweep) -> dict[Path, int]:
    """When what stays of trials was written: the results, and the checkpoints of those that were stopped."""
    ended = [event["key"] for event in sweep.journal("finish")]
    kept = (file for key in ended for file in sweep.layout.trial(key).path.glob("*.*"))
    return {file: file.stat().st_mtime_ns for file in kept if file.name in ("result.json", "checkpoint.pt")}
