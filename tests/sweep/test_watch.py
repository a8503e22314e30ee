"""Cohorts without progress, by a clock of the test's own."""

import os
from types import SimpleNamespace

import pytest

from otkd.core.layout import Layout
from otkd.sweep import overseer, stopping
from otkd.sweep.overseer import Overseer
from otkd.sweep.watch import Watch


@pytest.fixture
def layout(tmp_path):
    for key in ("a", "b", "c"):
        (tmp_path / "trials" / key).mkdir(parents=True)
    return Layout(tmp_path)


@pytest.fixture
def clock():
    return SimpleNamespace(now=1e6)


class Beats:
    """Touches pulses at times that are ever new, as a worker's clock may be anything."""

    def __init__(self, layout):
        self.layout, self.time = layout, 10**18

    def __call__(self, *keys):
        for key in keys:
            file = self.layout.trial(key).pulse
            file.touch()
            self.time -= 10**9  # a clock that goes back
            os.utime(file, ns=(self.time, self.time))


def test_a_cohort_is_hung_when_none_of_its_pulses_changes(layout, clock):
    beat, running = Beats(layout), {"one": ["a", "b"], "two": ["c"]}
    watch, found = Watch(layout, 10, lambda: clock.now), []
    for second in range(24):
        clock.now += 1
        beat("b")
        if second < 5:
            beat("c")
        found.append(watch.hung(running))
    assert [second for second, names in enumerate(found) if names] == [14], "ten seconds after the last beat"
    assert found[14] == ["two"]


def test_after_it_was_named_it_gets_as_long_again(layout, clock):
    watch, found = Watch(layout, 3, lambda: clock.now), []
    for second in range(10):
        clock.now += 1
        if watch.hung({"one": ["a"]}):
            found.append(second)
    assert found == [3, 7], "each time three seconds after it is first seen"


def test_time_in_which_the_driver_was_held_up_does_not_count(layout, clock):
    watch = Watch(layout, 60, lambda: clock.now)
    for pause in (1, 3600, 1, 1):
        clock.now += pause
        assert watch.hung({"one": ["a"]}) == []


def test_a_cohort_that_comes_back_counts_from_then(layout, clock):
    watch = Watch(layout, 3, lambda: clock.now)
    for running in ({"one": ["a"]}, {"one": ["a"]}, {}, {"one": ["a"]}, {"one": ["a"]}, {"one": ["a"]}):
        clock.now += 1
        assert watch.hung(running) == []


class Tuned:
    """One of Tune's trials."""

    RUNNING = "RUNNING"

    def __init__(self, name, status="RUNNING"):
        self.trial_id, self.status = name, status
        self.temporary_state = SimpleNamespace(ray_actor=f"actor of {name}")


@pytest.fixture
def overseen(layout, clock, monkeypatch):
    killed = []
    monkeypatch.setattr(overseer.ray, "kill", killed.append)
    notes = []
    own = SimpleNamespace(key="a", student=SimpleNamespace(name="resnet8"), seed=3, objective={"ce": {}, "kd": {}})
    made = Overseer(layout, 2.0, lambda _: [own], notes.append, lambda: clock.now)
    return SimpleNamespace(overseer=made, killed=killed, notes=notes)


def test_a_hung_worker_is_ended_and_its_cohort_named(overseen, clock):
    for _ in range(4):
        clock.now += 1
        overseen.overseer.look([Tuned("one"), Tuned("two", "PENDING")])
    assert overseen.killed == ["actor of one"]
    assert overseen.notes == ["resnet8, seed 3 (ce + kd): no progress for 2 s; its worker is ended"]


def test_all_is_over_when_those_have_ended_that_were_running(overseen, layout, clock):
    one, two, later = Tuned("one"), Tuned("two"), Tuned("later", "PENDING")
    clock.now += 1
    overseen.overseer.look([one, two, later])
    assert not overseen.overseer.over
    stopping.ask(layout)
    clock.now += 1
    overseen.overseer.look([one, two, later])
    later.status = "RUNNING"
    clock.now += 1
    overseen.overseer.look([one, two, later])
    for trial in (one, two):
        assert not overseen.overseer.over
        overseen.overseer.ended(trial)
    assert overseen.overseer.over


def test_who_does_not_save_in_time_is_not_waited_for(overseen, layout, clock):
    stopping.ask(layout)
    clock.now += 1
    overseen.overseer.look([Tuned("one")])
    clock.now += overseer.SAVE_S
    assert not overseen.overseer.over
    clock.now += 1
    assert overseen.overseer.over
