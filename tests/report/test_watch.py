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


def play(*script, over_after: int | None = None, lacking: tuple[int, ...] = ()):
    """Watch what `script` gives, one item a look; returns the looks at which it was rebuilt, and what was told.

    Args:
        lacking: looks at which the report lacks something.
    """
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

    def rebuild(records):
        rebuilt.append(looks[-1])
        assert records == [script[looks[-1]]], "what was read, and not again"
        return looks[-1] not in lacking

    watch(look, rebuild, is_over, told.append, 1.5, sleep=slept.append)
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


def test_a_report_that_lacks_something_is_made_again():
    running, done = record("running"), record("finished")
    assert play(running, running, running, done, lacking=(0,))[0] == [0, 1, 3]
    assert play(done, done, lacking=(0,))[0] == [0, 1], "even where the sweep is over"


def test_what_always_lacks_something_is_made_three_times_of_a_state():
    running, done = record("running"), record("finished")
    always = tuple(range(9))
    rebuilt, _ = play(running, running, running, running, done, done, done, lacking=always)
    assert rebuilt == [0, 1, 2, 4, 5, 6]


def test_a_store_that_goes_away_while_it_is_rebuilt_costs_no_state():
    done = record("finished")
    looks = iter([TrackingError("gone"), True])
    told = []

    def rebuild(records):
        now = next(looks)
        if isinstance(now, Exception):
            raise now
        return now

    watch(lambda: [done], rebuild, lambda records: True, told.append, 1.5, sleep=slept.append)
    assert told == ["waiting for the store: gone"]
    assert next(looks, None) is None
