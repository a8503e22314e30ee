"""A report that is made again: when, how often, and until when; by a script instead of a store."""

from __future__ import annotations

import pytest
from report_sweeps import Sweep

from otkd.core.errors import OtkdError, TrackingError
from otkd.report.watch import is_settled, watch


def record(*states: str):
    sweep = Sweep()
    for seed, state in enumerate(states):
        sweep.student("kd", 70.0, seed, status=state)
    return sweep.record()


def play(*script, over_after: int | None = None):
    """Watch what `script` gives, one item a look; returns the looks at which it was rebuilt, and what was told."""
    looks: list[int] = []
    rebuilt: list[int] = []
    told: list[str] = []

    def look():
        looks.append(len(looks))
        item = script[looks[-1]]
        if isinstance(item, Exception):
            raise item
        return [item]

    def is_over(records):
        return all(map(is_settled, records)) if over_after is None else len(looks) > over_after

    watch(look, lambda: rebuilt.append(looks[-1]), is_over, told.append, 1.5, sleep=slept.append)
    return rebuilt, told


slept: list[float] = []


@pytest.fixture(autouse=True)
def _awake():
    slept.clear()


def test_rebuilt_when_a_state_changes_and_over_when_all_have_ended():
    running, half, done = record("running", "running"), record("finished", "running"), record("finished", "failed")
    rebuilt, told = play(running, running, half, half, half, done)
    assert rebuilt == [0, 2, 5]
    assert told == []
    assert slept == [1.5] * 5


def test_a_sweep_that_is_over_is_written_once():
    assert play(record("finished", "diverged")) == ([0], [])


def test_a_missing_trial_may_come_yet():
    assert not is_settled(record("finished", "missing"))
    assert play(record("missing"), record("missing"), record("finished"))[0] == [0, 2]


def test_a_store_that_is_away_is_waited_for_and_told_once():
    wrapped = OtkdError("away: set MLFLOW_TRACKING_URI")
    wrapped.__cause__ = TrackingError("away")
    running, done = record("running"), record("finished")
    rebuilt, told = play(TrackingError("no answer"), wrapped, running, TrackingError("no answer"), done)
    assert rebuilt == [2, 4]
    assert told == ["waiting for the store: no answer"] * 2


def test_what_waiting_does_not_mend_ends_it():
    with pytest.raises(OtkdError, match="there is no sweep"):
        play(OtkdError("there is no sweep 'x'"))


def test_it_goes_on_while_the_driver_is_there():
    done = record("finished")
    assert play(done, done, done, over_after=2) == ([0], [])
    assert len(slept) == 2
