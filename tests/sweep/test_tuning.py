"""Searches: what is tried, what is stopped, who wins, and that an interruption changes none of it."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from otkd.core import names
from otkd.core.errors import ConfigError, OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, TrialResult
from otkd.sweep.candidate import Seeds
from otkd.sweep.contest import Contest, journalled
from otkd.sweep.journal import journal_file
from otkd.sweep.live import Progress
from otkd.sweep.local import LocalRunner
from otkd.sweep.plan import make
from otkd.sweep.run import Broadcast, ends, execute, is_left, outcome
from otkd.sweep.schedulers import PerStudy
from otkd.sweep.search import draw
from otkd.sweep.searchers import Begun, Ending, Log, Report, proposer
from otkd.sweep.spec import load
from otkd.sweep.tried import Tried, id_of, trials_of, winners
from otkd.sweep.tuning import expect_possible
from otkd.track.jsonl import JsonlSink
from otkd.train import CohortTrainer, Environment
from otkd.train.distributed import GroupError
from otkd.train.engine import fetch
from otkd.train.pulse import DeadlineError

WEIGHT = "methods.kd.kd.weight"
RANDOM = {"kind": "random", "space": {WEIGHT: {"loguniform": [0.1, 10]}}, "samples": 4}


@pytest.fixture
def planned(sweep_file):
    def make_plan(search, **parts):
        return make(load(sweep_file(search=search, **parts)))

    return make_plan


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "runs")


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.results, self.notes, self.infos = [], [], []

    def finish(self, result):
        self.results.append(result)

    def note(self, text):
        self.notes.append(text)

    def plan(self, info):
        self.infos.append(info)


def kd(plan):
    return next(study for study in plan.studies if study.method == "kd")


def only_kd(plan):
    return plan._replace(studies=(kd(plan),))


def drain(contest):
    """Everything that a contest proposes, each ended as finished at once."""
    found = []
    while (candidate := contest.next()) is not None:
        found.append(candidate)
        contest.judge(id_of(candidate), Report(2, 50.0, 50.0, 0.5))
        contest.end(id_of(candidate), "finished", "", {})
    return found


def write_result(layout, trial, val, test=0.0, status="finished"):
    folder = layout.trial(trial.key)
    folder.path.mkdir(parents=True, exist_ok=True)
    file = folder.failed if status == "failed" else folder.result
    metrics = {names.BEST_VAL_TOP1: val, names.test("last", "top1"): test}
    result = TrialResult(key=trial.key, status=status, metrics=metrics, started=0.0, ended=1.0)
    file.write_text(result.model_dump_json())


def checkpointed(layout, trial):
    folder = layout.trial(trial.key)
    return folder.checkpoint.exists() and not folder.done


# What is tried


def test_studies_take_turns_and_a_restart_proposes_the_same(planned, layout):
    plan = planned(RANDOM)
    first = Contest(plan, layout, Ear())
    begun = [first.next() for _ in range(3)]
    assert [id_of(candidate).split(" · ")[1] for candidate in begun] == ["student #0", "kd #0", "kd #1"]
    again = drain(Contest(plan, layout, Ear()))
    assert [id_of(candidate) for candidate in again[:3]] == [id_of(candidate) for candidate in begun]
    assert [candidate.values for candidate in again[:3]] == [candidate.values for candidate in begun]
    assert len(again) == 1 + 4


def test_a_line_that_a_crash_cut_short_is_forgotten(planned, layout):
    plan = planned(RANDOM)
    contest = Contest(plan, layout, Ear())
    begun = [contest.next() for _ in range(3)]
    log = Log(layout, plan.info.key)
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-9])
    again = drain(Contest(plan, layout, Ear()))
    assert [candidate.values for candidate in again[:3]] == [candidate.values for candidate in begun]
    assert sum(line.event == "begin" for line in log.read()) == 5


def test_a_grid_is_tried_in_a_random_order_that_stays(planned, layout):
    """As listed, what a scheduler or a budget leaves would depend on how the axis is written down."""
    methods = {"kd": {"ce": 1, "kd": {"weight": {"grid": list(range(1, 41))}}}}
    plan, other = (planned({"scheduler": "asha", "seed": seed}, methods=methods) for seed in (0, 1))
    begun = [Contest(plan, layout, Ear()).next() for _ in range(2)]
    assert id_of(begun[0]) == id_of(begun[1])
    orders = [[c.values[WEIGHT] for c in drain(Contest(one, layout, Ear()))] for one in (plan, other)]
    assert begun[0].values[WEIGHT] == orders[0][0]
    assert [sorted(order) for order in orders] == [list(range(1, 41))] * 2
    assert orders[0] != orders[1]
    early = sum(orders[0][:20]) / 20
    assert abs(early - 20.5) < 3 * 11.5 / 40**0.5  # 20 of 40, drawn without putting back: three standard errors


def test_the_same_configuration_is_not_tried_twice(planned, layout):
    plan = planned({**RANDOM, "space": {WEIGHT: {"choice": [1.0, 2.0]}}, "samples": 12})
    tried = [candidate.values[WEIGHT] for candidate in drain(Contest(only_kd(plan), layout, Ear()))]
    assert sorted(tried) == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_study_gets_as_many_configurations_as_there_are_samples(planned, layout, kind):
    """What is drawn twice is drawn again; after an interruption the same."""
    space = {WEIGHT: {"choice": [1, 2, 3, 4, 5, 6, 7, 8]}}
    plan = only_kd(planned({**RANDOM, "kind": kind, "space": space, "samples": 8}))
    if kind == "random":
        first = [draw(kd(plan), number, 0)[WEIGHT] for number in range(8)]
        assert len(set(first)) < 8
    ear = Ear()
    tried = [candidate.values[WEIGHT] for candidate in drain(Contest(plan, layout, ear))]
    assert sorted(tried) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert ear.notes == []
    elsewhere = Layout(layout.root.with_name("other"))
    contest = Contest(plan, elsewhere, Ear())
    for _ in range(5):
        candidate = contest.next()
        contest.judge(id_of(candidate), Report(2, 50.0, 50.0, 0.5))
        contest.end(id_of(candidate), "finished", "", {})
    assert [candidate.values[WEIGHT] for candidate in drain(Contest(plan, elsewhere, Ear()))] == tried
    if kind == "random":
        assert [candidate.values[WEIGHT] for candidate in plan.known(kd(plan))] == tried
        assert tried[0] == first[0]


def test_what_an_older_log_has_tried_is_not_tried_again(planned, layout):
    """Numbers that it passed over get what it left."""
    space = {WEIGHT: {"choice": [1, 2, 3, 4]}}
    plan = only_kd(planned({**RANDOM, "space": space, "samples": 4}))
    values = [draw(kd(plan), number, 0) for number in range(4)]
    log = Log(layout, plan.info.key)
    for number in range(4):
        if values[number] not in values[:number]:
            log.append(Begun(study=kd(plan).title, number=number, values=values[number]))
    again = drain(Contest(plan, layout, Ear()))
    assert sorted(candidate.values[WEIGHT] for candidate in again) == [1, 2, 3, 4]
    begun = {line.number: line.values for line in log.read() if line.event == "begin"}
    assert sorted(begun) == [0, 1, 2, 3]


def test_two_methods_that_meet_in_a_trial_train_it_one_after_the_other(planned, layout):
    space = {WEIGHT: {"choice": [1.0, 2.0]}}
    methods = {"kd": {"ce": 1, "kd": 1}, "other": {"ce": 1, "kd": 1}}
    plan = planned({**RANDOM, "space": space, "samples": 12}, methods=methods)
    contest = Contest(plan, layout, Ear())
    begun = []
    while (candidate := contest.next()) is not None:
        begun.append(candidate)
    keys = [planned.trial.key for candidate in begun for planned in candidate.planned]
    assert contest.waits
    assert len(begun) == 2
    assert len(keys) == len(set(keys))
    for candidate in begun:
        contest.end(id_of(candidate), "finished", "", {})
    assert contest.next() is not None
    assert not contest.waits


def test_all_who_wait_for_others_come_back(planned, layout):
    space = {WEIGHT: {"choice": [1.0, 2.0, 3.0]}}
    methods = {"kd": {"ce": 1, "kd": 1}, "one": {"ce": 1, "kd": 1}, "two": {"ce": 1, "kd": {"weight": 2}}}
    contest = Contest(planned({**RANDOM, "space": space, "samples": 24}, methods=methods), layout, Ear())
    begun = []
    while (candidate := contest.next()) is not None:
        begun.append(candidate)
    assert len(begun) == 3
    for candidate in begun:
        contest.end(id_of(candidate), "finished", "", {})
    assert [contest.next() is not None for _ in range(3)] == [True, True, False]
    assert not contest.waits


def test_of_equals_in_a_grid_the_first_that_was_tried_wins(planned, layout):
    """As in the report, which knows of no numbers."""
    methods = {"kd": {"ce": 1, "kd": {"weight": {"grid": [1.0, 2.0, 3.0, 4.0]}}}}
    plan = planned({"scheduler": "asha", "seed": 1}, methods=methods)
    first, *_ = stand(plan, layout, [(60.0, 60.0)] * 4).standings.values()
    [winner] = winners(Tried(plan, layout).standings, layout).values()
    assert winner.candidate == first.candidate
    assert first.candidate.number != 0


def test_values_that_do_not_go_together_are_left_out_and_said(planned, layout):
    space = {"train.batch_size": {"int": [2, 64]}, "train.accumulate": {"int": [1, 16]}}
    ear = Ear()
    plan = only_kd(planned({**RANDOM, "space": space, "samples": 40}))
    drained, sound = drain(Contest(plan, layout, ear)), list(plan.known(kd(plan)))
    assert [c.values for c in drained] == list({c.planned[0].trial.key: c.values for c in sound}.values())
    assert len(sound) + len(ear.notes) == 40
    assert all("is left out" in note for note in ear.notes)


def test_the_log_is_read_once_for_all_that_is_asked_of_it(planned, layout, monkeypatch):
    plan = planned({**RANDOM, "final": {"seeds": 1}})
    drain(Contest(plan, layout, Ear()))
    read, readings = Log.read, []
    monkeypatch.setattr(Log, "read", lambda log: readings.append(1) or read(log))
    tried = Tried(plan, layout)
    assert len(tried.whole.students) == 2 * (1 + 4)
    assert (tried.over, tried.final, tried.pruned, tried.is_left) == (set(), None, {}, False)
    assert len(readings) == 1


def test_a_line_is_added_to_a_log_without_reading_it(planned, layout, monkeypatch):
    plan = planned(RANDOM)
    contest, read = Contest(plan, layout, Ear()), []
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: read.append(path) or b"")
    drain(contest)
    assert read == []


@pytest.mark.parametrize(("budget", "begun"), [({"trials": 4}, 2), ({"hours": 1.0}, 2), ({"hours": 0.2}, 1)])
def test_nothing_begins_after_the_budget(planned, layout, budget, begun):
    """Two seeds a configuration, and half an hour each."""
    plan = planned({**RANDOM, "budget": budget})
    assert len(drain(Contest(plan, layout, Ear()))) == begun


@pytest.mark.parametrize("rule", [{"budget": {"hours": 1.0}}, {"stop": {"target": 70.0}}])
def test_what_a_stopped_search_has_used_and_reached_counts_before_it_goes_on(planned, layout, rule):
    """One seed has trained two epochs of half an hour, the other one, when all is killed."""
    plan = only_kd(planned({**RANDOM, **rule}))
    [candidate] = [Contest(plan, layout, Ear()).next()]
    sink = JsonlSink(journal_file(layout, plan.info.name))
    for item, epochs in zip(candidate.planned, (2, 1), strict=True):
        sink.start(item.trial)
        for epoch in range(1, epochs + 1):
            metrics = {names.VAL_TOP1: 70.0, names.EPOCH_S: 1500.0, names.EVAL_S: 300.0}
            sink.epoch(EpochRecord(key=item.trial.key, epoch=epoch, epochs=9, metrics=metrics, time=0.0))
    sink.close()
    contest = Contest(plan, layout, Ear())
    assert contest.standings[id_of(candidate)].last == Report(1, 70.0, 70.0, 1.5)
    assert id_of(contest.next()) == id_of(candidate)
    assert contest.next() is None


def test_damaged_lines_of_the_journal_are_passed_over(tmp_path):
    record = EpochRecord(key="a" * 16, epoch=1, epochs=2, metrics={"val/top1": 5.0}, time=0.0)
    journal = JsonlSink(tmp_path / "journal.jsonl")
    journal.epoch(record)
    journal.close()
    line = (tmp_path / "journal.jsonl").read_text()
    (tmp_path / "journal.jsonl").write_text(line[: len(line) // 2] + "\n" + line.replace("epochs", "parts") + line)
    assert journalled(tmp_path / "journal.jsonl", {record.key}) == {record.key: [record]}


def test_a_study_that_has_its_target_begins_no_other(planned, layout):
    plan = planned({**RANDOM, "stop": {"target": 50.0}})
    assert [id_of(candidate).split(" · ")[1] for candidate in drain(Contest(plan, layout, Ear()))] == [
        "student #0",
        "kd #0",
    ]


def test_the_listener_learns_of_every_new_label(planned, layout):
    plan, ear = planned(RANDOM), Ear()
    drain(Contest(plan, layout, ear))
    keys = [{label.key for label in info.labels} for info in ear.infos]
    assert all(before < after for before, after in itertools.pairwise(keys))
    assert len(keys[-1]) == 1 + 5 * 2
    assert {label.stage for label in ear.infos[-1].labels} == {"search"}


# What is stopped


@pytest.mark.parametrize(
    ("stop", "curve", "reason"),
    [
        ({"plateau": {"epochs": 2, "delta": 1.0}}, [10, 20, 20.5, 20.9], "no gain since epoch 2 (search.stop.plateau)"),
        ({"plateau": {"epochs": 2, "delta": 1.0}}, [10, 20, 21, 21.5], ""),
        ({"plateau": {"epochs": 2, "delta": 0.0}}, [10, 20, 20, 20], "no gain since epoch 2 (search.stop.plateau)"),
        ({"hours": 0.35}, [10, 20, 30, 40], "it has had 0.35 hours (search.stop.hours)"),
        ({"hours": 0.45}, [10, 20, 30, 40], ""),
        ({}, [10, 10, 10, 10], ""),
    ],
)
def test_rules_that_end_a_configuration(planned, layout, stop, curve, reason):
    plan = planned({**RANDOM, "stop": stop}, train={"epochs": 9, "batch_size": 32})
    contest = Contest(only_kd(plan), layout, Ear())
    id_ = id_of(contest.next())
    found = [contest.judge(id_, Report(n, value, value, 0.1 * n)) for n, value in enumerate(curve, 1)]
    assert found[:-1] == ["", "", ""]
    assert found[-1] == (f"stopped after epoch 4: {reason}" if reason else "")


def test_what_was_stopped_stays_stopped_and_is_told_once(planned, layout):
    plan = only_kd(planned({**RANDOM, "samples": 1}))
    for heard in (2, 0):
        ear = Ear()
        contest = Contest(plan, layout, ear)
        candidate = contest.next()
        reasons = [contest.judge(id_of(candidate), Report(1, 10.0, 10.0, 0.1))]
        assert reasons == ([""] if heard else ["enough"])
        contest.end(id_of(candidate), "pruned", "enough", {})
        assert [result.status for result in ear.results] == ["pruned"] * heard
        assert [result.reason for result in ear.results] == ["enough"] * heard
    assert sum(line.event == "end" for line in Log(layout, plan.info.key).read()) == 1


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_seed_that_ends_badly_ends_its_configuration_and_the_search_goes_on_to_its_end(planned, layout, status):
    """The other seed is left where it is: nothing waits for it, in this session or the next."""
    plan = only_kd(planned({**RANDOM, "samples": 2, "final": {"seeds": 1}}))
    write_result(layout, plan.teachers[0].trial, 90.0)
    ear = Ear()
    contest = Contest(plan, layout, ear)
    bad, good = contest.next(), contest.next()
    write_result(layout, bad.planned[0].trial, 0.0, status=status)
    contest.end(id_of(bad), status, "", {})
    for item in good.planned:
        write_result(layout, item.trial, 50.0)
    contest.end(id_of(good), "finished", "", {})
    contest.conclude()
    reason = f"stopped: another seed of its configuration {status}"
    assert [(result.key, result.reason) for result in ear.results] == [(bad.planned[1].trial.key, reason)]
    tried = Tried(plan, layout)
    assert tried.over == {kd(plan)}
    assert tried.pruned == {bad.planned[1].trial.key: reason, **tried.pruned}
    assert {item.label.stage for item in tried.final.students} == {"final"}
    final = {item.trial.key for item in tried.final.all}
    held = frozenset({bad.planned[0].trial.key})
    assert {key for key in tried.whole.trials if key not in ends(plan, layout)} == final
    for item in tried.final.all:
        write_result(layout, item.trial, 60.0)
    assert not is_left(plan, layout, held)


def test_what_fails_again_as_before_ends_its_other_seeds_again(planned, layout):
    """They were begun again: without a word their runs would end as interrupted."""
    plan = only_kd(planned({**RANDOM, "samples": 1}))
    for _ in range(2):
        ear = Ear()
        contest = Contest(plan, layout, ear)
        candidate = contest.next()
        bad, other = trials_of(candidate)
        contest.judge(id_of(candidate), Report(1, 10.0, 10.0, 0.1))
        write_result(layout, bad, 0.0, status="failed")
        contest.end(id_of(candidate), "failed", "", {})
        assert [(result.key, result.status) for result in ear.results] == [(other.key, "pruned")]
        layout.trial(bad.key).failed.unlink()  # otkd sweep --retry-failed


class FakeTrial:
    def __init__(self, name, study):
        self.trial_id, self.config, self.status = name, {"study": study, "id": name}, "RUNNING"


def told(scheduler, trial, epoch, value, earlier=0):
    result = {**Report(epoch, value, value, 0.1)._asdict(), "earlier": earlier}
    return scheduler.on_trial_result(None, trial, result)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_weak_method_is_compared_with_itself_alone(planned, name):
    options = {"asha": {"grace": 1, "factor": 2}, "median": {"grace": 1, "samples": 2}}[name]
    plan = planned({**RANDOM, "scheduler": {"name": name, **options}}, train={"epochs": 9, "batch_size": 32})
    scheduler = PerStudy(plan.spec.search, 9, lambda id_, report: "")
    values = {"strong": [90.0, 80.0, 84.0], "weak": [20.0, 10.0, 14.0]}
    decisions = {}
    for number in range(3):
        for study, own in values.items():
            trial = FakeTrial(f"{study} {number}", study)
            scheduler.on_trial_add(None, trial)
            decisions[study, number] = told(scheduler, trial, 1, own[number])
    assert [decisions["weak", n] for n in range(3)] == [decisions["strong", n] for n in range(3)]
    assert decisions["weak", 0] == "CONTINUE"
    assert "STOP" in decisions.values()
    assert all(f"stopped by {name} after epoch 1" in reason for reason in scheduler.reasons.values())


@pytest.mark.parametrize("name", ["asha", "median"])
def test_what_was_let_through_is_not_stopped_when_it_is_told_again_after_better_ones(planned, name):
    """The one that it has come to is judged as ever: whether it was let through there nobody knows."""
    options = {"asha": {"grace": 1, "factor": 3}, "median": {"grace": 1, "samples": 2}}[name]
    plan = planned({**RANDOM, "scheduler": {"name": name, **options}}, train={"epochs": 27, "batch_size": 32})
    scheduler = PerStudy(plan.spec.search, 27, lambda id_, report: "")
    *better, late = (FakeTrial(id_, "study") for id_ in "BCDA")
    for trial in (*better, late):
        scheduler.on_trial_add(None, trial)
    for trial in better:
        assert told(scheduler, trial, 1, 80.0) == "CONTINUE"
        assert [told(scheduler, trial, epoch, 80.0) for epoch in range(2, 10)] == ["CONTINUE"] * 8
    again = [told(scheduler, late, epoch, 50.0, earlier=9) for epoch in range(1, 9)]
    assert again == ["CONTINUE"] * 8
    assert scheduler.reasons == {}
    assert told(scheduler, late, 9, 50.0, earlier=9) == "STOP"


def test_what_a_worker_found_that_took_over_was_not_let_through_by_anybody(planned):
    plan = planned({**RANDOM, "scheduler": {"name": "asha", "grace": 3}}, train={"epochs": 9, "batch_size": 32})
    scheduler = PerStudy(plan.spec.search, 9, lambda id_, report: "")
    better, late = FakeTrial("A", "study"), FakeTrial("B", "study")
    for trial in (better, late):
        scheduler.on_trial_add(None, trial)
    assert told(scheduler, better, 3, 80.0) == "CONTINUE"
    assert told(scheduler, late, 1, 50.0, earlier=0) == "CONTINUE"
    assert told(scheduler, late, 3, 50.0, earlier=3) == "STOP"


@pytest.mark.parametrize("lost", [0, 1])
def test_the_end_of_what_was_trained_to_its_end_stands(planned, layout, lost):
    """Otherwise the hours that it took would be free again. What was lost of it is cut short once, not every time."""
    plan = only_kd(planned({**RANDOM, "samples": 2, "budget": {"hours": 1.0}}))
    contest = Contest(plan, layout, Ear())
    candidate = contest.next()
    id_, trials = id_of(candidate), trials_of(candidate)
    for trial in trials[lost:]:
        write_result(layout, trial, 50.0)
    for epoch in (1, 2):
        contest.judge(id_, Report(epoch, 50.0, 50.0, 0.9 * epoch))
    contest.end(id_, "finished", "", {})
    ear = Ear()
    later = Contest(plan, layout, ear)
    assert id_of(later.next()) == id_
    later.judge(id_, Report(1, 50.0, 50.0, 0.9))
    later.end(id_, "pruned", "stopped by asha after epoch 1", {})
    [standing] = Tried(plan, layout).standings
    status = "pruned" if lost else "finished"
    assert (standing.earlier.status, standing.earlier.reports[-1].hours) == (status, 1.8)
    assert standing.decided or not lost, "it is not trained again every time"
    assert [(one.key, one.status) for one in ear.results] == [(trial.key, "pruned") for trial in trials[:lost]]
    assert Contest(plan, layout, Ear()).next() is not None
    assert later.next() is None


def test_brackets_are_filled_as_before(planned, layout):
    """In the order in which configurations were tried; other schedulers hear of those first that have ended."""
    for name in ("hyperband", "asha"):
        plan = only_kd(planned({**RANDOM, "scheduler": name}))
        first = Contest(plan, layout, Ear())
        begun = [id_of(first.next()) for _ in range(3)]
        first.judge(begun[1], Report(1, 10.0, 10.0, 0.1))
        first.end(begun[1], "pruned", "enough", {})
        again = Contest(plan, layout, Ear())
        expected = begun if name == "hyperband" else [begun[1], begun[0], begun[2]]
        assert [id_of(again.next()) for _ in range(3)] == expected


def test_the_rules_of_the_search_stop_besides_the_scheduler(planned):
    scheduler = PerStudy(planned(RANDOM).spec.search, 9, lambda id_, report: "too long" if report.epoch == 2 else "")
    trial = FakeTrial("one", "study")
    scheduler.on_trial_add(None, trial)
    assert [told(scheduler, trial, epoch, 50.0) for epoch in (1, 1, 2)] == ["CONTINUE", "CONTINUE", "STOP"]
    assert scheduler.reasons == {"one": "too long"}


def test_the_last_epoch_is_judged_though_tune_tells_it_with_the_end(planned):
    heard = []
    scheduler = PerStudy(planned(RANDOM).spec.search, 2, lambda id_, report: heard.append(report.epoch) or "")
    trial = FakeTrial("one", "study")
    scheduler.on_trial_add(None, trial)
    told(scheduler, trial, 1, 50.0)
    last = Report(2, 60.0, 60.0, 0.1)._asdict()
    scheduler.on_trial_complete(None, trial, {**last, "status": "finished"})
    assert heard == [1, 2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kind": "optuna"}, "search.kind: optuna suggests by what has ended, and hyperband begins all"),
        ({"stop": {"target": 50.0}}, "search.stop.target: has nothing to keep from beginning: hyperband"),
        ({"budget": {"hours": 1.0}}, "search.budget.hours: has nothing to keep from beginning: hyperband"),
    ],
)
def test_what_hyperband_cannot_heed_is_refused(planned, parts, message):
    planned({**RANDOM, "scheduler": "hyperband", "budget": {"trials": 3}})
    with pytest.raises(ConfigError, match=message):
        planned({**RANDOM, "scheduler": "hyperband", **parts})


# Optuna


def parabola(values):
    """Highest at 1."""
    return 90.0 - 20 * abs(torch.log10(torch.tensor(values[WEIGHT])).item())


def suggestions(plan, many):
    """What a study is offered when each is told how good the last was."""
    found = []
    asked = proposer(plan.spec.search, kd(plan))
    for number in range(many):
        found.append(asked.propose(number))
        best = parabola(found[-1])
        ending = Ending(study=kd(plan).title, number=number, status="finished", reports=(Report(1, best, best, 0.1),))
        asked.tell(number, ending)
    return found


def test_optuna_learns_where_the_good_values_are(planned):
    many = 25
    random = [candidate.values for candidate in planned({**RANDOM, "samples": many}).known(kd(planned(RANDOM)))]
    offered = suggestions(planned({**RANDOM, "kind": "optuna", "samples": many}), many)
    late = [parabola(values) for values in offered[15:]]
    assert min(late) > min(map(parabola, random))
    assert sum(late) / len(late) > sum(map(parabola, random)) / len(random)


def test_optuna_suggests_the_same_after_a_restart(planned, layout):
    plan = only_kd(planned({**RANDOM, "kind": "optuna", "samples": 14}))

    def go_on(where, most):
        contest, found = Contest(plan, where, Ear()), []
        while len(found) < most and (candidate := contest.next()) is not None:
            best = parabola(candidate.values)
            contest.judge(id_of(candidate), Report(1, best, best, 0.1))
            contest.end(id_of(candidate), "finished", "", {})
            found.append(candidate.values)
        return found

    whole_run = go_on(layout, 99)
    elsewhere = Layout(layout.root.with_name("other"))
    go_on(elsewhere, 12)
    assert go_on(elsewhere, 99) == whole_run
    assert len(whole_run) == 14


def test_optuna_is_told_the_numbers_that_were_tried_before_a_restart_as_after(planned):
    """Not those that it drew, which have more digits."""
    plan = planned({**RANDOM, "kind": "optuna", "samples": 40})
    before, after = (proposer(plan.spec.search, kd(plan)) for _ in range(2))
    for number in range(40):
        values = before.propose(number)
        after.recall(number, values)
        best = parabola(values)
        ending = Ending(study="", number=number, status="finished", reports=(Report(1, best, best, 0.1),))
        before.tell(number, ending)
        after.tell(number, ending)
    known, again = (
        [dict(trial.params) for trial in asked._optuna.trials if trial.state.name == "COMPLETE"]
        for asked in (before, after)
    )
    assert known == again
    assert before.propose(40) == after.propose(40)


def test_choices_and_whole_numbers_reach_optuna_and_come_back(planned):
    space = {"train.batch_size": {"int": [16, 64]}, "train.optimizer.nesterov": {"choice": [True, False]}}
    plan = planned({"kind": "optuna", "space": space, "samples": 5})
    asked = proposer(plan.spec.search, kd(plan))
    values = [asked.propose(number) for number in range(5)]
    assert all(type(v["train.batch_size"]) is int and 16 <= v["train.batch_size"] <= 64 for v in values)
    assert {v["train.optimizer.nesterov"] for v in values} <= {True, False}
    again = proposer(plan.spec.search, kd(plan))
    again.recall(0, values[0])
    again.tell(0, None)


# Who wins


def stand(plan, layout, vals, tests=None):
    """A contest of which each configuration has ended with these figures, one a seed."""
    contest = Contest(only_kd(plan), layout, Ear())
    for number, own in enumerate(vals):
        candidate = contest.next()
        for seed, (item, val) in enumerate(zip(candidate.planned, own, strict=True)):
            if val is not None:
                write_result(layout, item.trial, val, 0.0 if tests is None else tests[number][seed])
        contest.end(id_of(candidate), "finished" if None not in own else "failed", "", {})
    return contest


def test_the_highest_mean_over_seeds_wins_whatever_the_test_images_say(planned, layout):
    vals = [(60.0, 60.0), (70.0, 55.0), (80.0, 40.0), (62.0, 63.0)]
    contest = stand(planned(RANDOM), layout, vals, tests=[(99.0, 99.0), (0.0, 0.0), (99.0, 99.0), (99.0, 99.0)])
    [(study, winner)] = winners(contest.standings.values(), layout).items()
    assert study.method == "kd"
    assert (winner.candidate.number, winner.value, winner.finished) == (1, 62.5, True)


def test_of_equals_the_first_wins_and_one_without_all_its_seeds_does_not(planned, layout):
    vals = [(99.0, None), (60.0, 61.0), (61.0, 60.0), (10.0, 10.0)]
    [winner] = winners(stand(planned(RANDOM), layout, vals).standings.values(), layout).values()
    assert winner.candidate.number == 1


def test_where_all_were_stopped_the_best_of_them_wins(planned, layout):
    plan = only_kd(planned({**RANDOM, "samples": 2}))
    contest = Contest(plan, layout, Ear())
    for value in (40.0, 50.0):
        id_ = id_of(contest.next())
        contest.judge(id_, Report(1, value, value, 0.1))
        contest.end(id_, "pruned", "enough", {})
    [winner] = winners(Tried(plan, layout).standings, layout).values()
    assert (winner.candidate.number, winner.value, winner.finished) == (1, 50.0, False)


# What fails


class FakeTrainer:
    """Trains two epochs; before each step it takes what goes wrong from a list."""

    def __init__(self, trial, wrong):
        self.trial, self.wrong, self.epoch = trial, wrong, 0
        self.done, self.stopped, self.results = False, False, {}

    def step(self):
        wrong = self.wrong.pop(0) if self.wrong else None
        if isinstance(wrong, Exception):
            raise wrong
        self.epoch += 1
        self.done = wrong == "failed" or self.epoch == 2
        if self.done:
            status = wrong or "finished"
            self.results[self.trial.key] = TrialResult(key=self.trial.key, status=status, started=0.0, ended=1.0)
        return [trained(self.trial, self.epoch)]


def trained(trial, epoch):
    metrics = {names.VAL_TOP1: 50.0 + epoch, names.EPOCH_S: 9.0, names.EVAL_S: 1.0}
    return EpochRecord(key=trial.key, epoch=epoch, epochs=2, metrics=metrics, time=0.0)


@pytest.fixture
def seeds(planned, layout):
    """Two trials of a configuration, and what goes wrong with each."""
    plan = only_kd(planned(RANDOM))
    trials = [item.trial for item in plan.candidate(kd(plan), 0, {WEIGHT: 1.0}).planned]

    def make_seeds(*wrong, retries=1):
        left = {trial.key: list(own) for trial, own in zip(trials, wrong, strict=True)}
        environment = Environment(layout=layout, device="cpu")
        return Seeds(trials, environment, lambda trial: FakeTrainer(trial, left[trial.key]), retries, (LookupError,))

    return make_seeds


def stepped(seeds):
    """Its reports, to the end."""
    found = []
    while seeds.status == "running":
        found += [report for report in [seeds.step()] if report is not None]
    return found


@pytest.mark.parametrize("wrong", [RuntimeError("a worker of the loader is dead"), "failed"])
def test_each_seed_has_retries_of_its_own_whatever_goes_wrong(seeds, wrong):
    both = seeds([None, wrong], [wrong])
    assert [report[:3] for report in stepped(both)] == [(1, 51.0, 51.0), (2, 52.0, 52.0)]
    assert both.status == "finished"


def test_a_seed_without_another_retry_fails_with_its_error(seeds):
    with pytest.raises(RuntimeError, match="second"):
        stepped(seeds([RuntimeError("first"), RuntimeError("second")], []))


@pytest.mark.parametrize("error", [StorageError("full"), GroupError("gone"), DeadlineError("late"), KeyError("lost")])
def test_what_another_attempt_cannot_mend_is_not_tried_again(seeds, error):
    with pytest.raises(type(error)):
        stepped(seeds([error], []))


def test_epochs_that_were_saved_before_an_error_are_not_lost(seeds, monkeypatch):
    both = seeds([None, RuntimeError("after the epoch")], [])
    both.step()
    first = both._seeds[0].trial
    history = [trained(first, epoch).model_dump_json() for epoch in (1, 2)]
    known = {first.key: {"history": history}}
    monkeypatch.setattr("otkd.train.checkpoint.load", lambda folder: known.get(folder.path.name))
    stepped(both)
    assert [record.epoch for record in both._seeds[0].main] == [1, 2]


def test_an_error_outside_of_a_member_is_tried_again_in_a_search_as_in_a_sweep(planned, layout, monkeypatch):
    plan = planned({**RANDOM, "samples": 1}, **SMALL, train={"epochs": 1}, resources={"retries": 1})
    step, broken = CohortTrainer._step, []

    def breaking(trainer, records):
        if trainer.teacher is not None and not broken:
            broken.append(trainer)
            raise RuntimeError("a worker of the loader is dead")
        step(trainer, records)

    monkeypatch.setattr(CohortTrainer, "_step", breaking)
    found, _ = run(plan, local(layout), layout)
    assert (len(broken), found.failed, found.open) == (1, (), 0)


# Whole searches, in this process


def run(plan, runner, layout):
    """A session without MLflow."""
    progress = Progress(plan)
    journal = JsonlSink(journal_file(layout, plan.info.name))
    ear = Ear()
    listener = Broadcast(progress, journal)
    listener.sinks = (*listener.sinks, Told(ear))
    fetch(plan.spec.data, runner.environment)
    found = execute(plan, runner, listener, progress, layout)
    journal.close()
    return found, ear


class Told:
    """A sink that a tracker could be."""

    def __init__(self, ear):
        self.describe, self.finish = ear.plan, ear.finish

    def start(self, trial):
        pass

    def epoch(self, record):
        assert isinstance(record, EpochRecord)


def local(layout):
    return LocalRunner(Environment(layout=layout, device="cpu", heed_stop=True))


def journal(layout, kind):
    lines = (layout.records / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


SMALL = {"data": {"name": "digits", "val": 0.2, "limit": 120}, "seeds": [0]}


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_search_in_this_process_trains_prunes_and_tests_the_winners_once(planned, layout, kind):
    search = {
        **RANDOM,
        "kind": kind,
        "samples": 2,
        "stop": {"plateau": {"epochs": 1, "delta": 100}},
        "final": {"seeds": 1},
    }
    plan = planned(search, **SMALL, train={"epochs": 3, "batch_size": 32})
    found, ear = run(plan, local(layout), layout)
    assert (found.finished, found.pruned, found.open) == (2 + 2, 3, 0)
    pruned = [result for result in ear.results if result.status == "pruned"]
    assert [len(result.epochs) for result in pruned] == [2, 2, 2]
    assert all(
        checkpointed(layout, item.trial) for item in Tried(plan, layout).whole.all if item.trial.key in ends_of(pruned)
    )
    assert {event["key"] for event in journal(layout, "finish") if event["status"] == "pruned"} == ends_of(pruned)
    known = Tried(plan, layout).whole
    assert {label.key for label in ear.infos[-1].labels} == set(known.trials)
    last = [item for item in known.students if item.label.stage == "final"]
    assert {item.label.method for item in last} == {"student", "kd"}
    assert all(item.trial.data.val == 0 and item.trial.seed == 1 for item in last)
    assert Tried(plan, layout).over == set(plan.studies)
    assert not is_left(plan, layout, frozenset())
    assert {end.status for end in ends(plan, layout).values()} == {"finished", "pruned"}


def ends_of(results):
    return {result.key for result in results}


def test_a_search_whose_teacher_failed_waits(planned, layout):
    plan = planned(RANDOM, **SMALL)
    write_result(layout, plan.teachers[0].trial, 10.0, status="diverged")
    found, _ = run(plan, local(layout), layout)
    assert set(found.waiting) == {study.title for study in plan.studies}
    assert not Log(layout, plan.info.key).path.exists()
    assert not is_left(plan, layout, frozenset())


def test_more_samples_go_on_with_the_same_search(planned, layout):
    plan, more = (planned({**RANDOM, "samples": samples}, **SMALL, train={"epochs": 1}) for samples in (1, 2))
    run(plan, local(layout), layout)
    before = set(Tried(plan, layout).whole.trials)
    assert more.info.key == plan.info.key
    assert is_left(more, layout, frozenset())
    _, ear = run(more, local(layout), layout)
    assert before < set(Tried(more, layout).whole.trials)
    assert len(ear.results) == 1
    assert outcome(more, layout).open == 0


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_what_needs_ray_is_refused_without_it(planned, layout, name):
    plan = planned({**RANDOM, "scheduler": name})
    with pytest.raises(OtkdError, match=f"search.scheduler: {name} is Ray's"):
        expect_possible(plan.spec.search, local(layout))
    with pytest.raises(OtkdError, match="leave --local out"):
        run(plan, local(layout), layout)
    assert not layout.trials.exists()


# Whole searches, with Ray


@pytest.fixture(scope="module")
def ray_runner(tmp_path_factory):
    """One Ray for all of them; `at` moves it to another `runs/`."""
    from otkd.sweep.spec import Resources
    from otkd.sweep.tune import RayRunner

    environment = Environment(layout=Layout(tmp_path_factory.mktemp("ray")), device="cpu", heed_stop=True)
    with RayRunner(environment, Resources(cpu=1)) as runner:
        yield runner


def at(runner, layout):
    runner.environment = replace(runner.environment, layout=layout)
    return runner


CLEAR = {
    "data": {"name": "digits", "val": 0.2, "limit": 300},
    "train": {"epochs": 4, "batch_size": 32, "schedule": {"name": "constant"}},
    "methods": {"student": {"ce": {"weight": {"grid": [1, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10]}}}},
    "seeds": [0, 1],
    "resources": {"cpu": 1},
}
"""A grid of which only the first point learns anything."""
FIRST = 9
"""The search's seed with which that point is tried first: the others are all alike, and halving stops no equals."""


@pytest.mark.long
@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_schedulers_stop_what_is_bad_and_find_the_winner_of_the_grid(planned, layout, ray_runner, name):
    plan = planned({"scheduler": name, "seed": FIRST}, **CLEAR)
    found, ear = run(plan, at(ray_runner, layout), layout)
    [winner] = winners(Tried(plan, layout).standings, layout).values()
    assert winner.candidate.number == 0
    assert winner.finished
    assert found.pruned > 0
    assert found.pruned + found.finished == 1 + 6 * 2
    assert found.open == 0
    pruned = [result for result in ear.results if result.status == "pruned"]
    assert len(pruned) == found.pruned
    assert all(0 < len(result.epochs) < 4 for result in pruned)
    assert all(layout.trial(result.key).checkpoint.exists() for result in pruned)
    assert not is_left(plan, layout, frozenset())
    assert SimpleNamespace(**journal(layout, "finish")[-1]).status in ("pruned", "finished")


@pytest.mark.long
def test_a_disk_that_refuses_a_new_configuration_stops_the_search(planned, layout, ray_runner, monkeypatch):
    plan = planned({**RANDOM, "samples": 3}, **SMALL, train={"epochs": 1})
    append = Log.append

    def full(log, line):
        if isinstance(line, Begun) and line.number == 1:
            raise StorageError("cannot write the log: No space left on device")
        append(log, line)

    monkeypatch.setattr(Log, "append", full)
    with pytest.raises(StorageError, match="No space left"):
        run(plan, at(ray_runner, layout), layout)


@pytest.mark.long
def test_a_search_on_a_cluster_keeps_all_on_the_storage(sweep_file, layout, node, tmp_path):
    """Workers have folders of their own. A driver that knows nothing of it trains nothing of it again."""
    file = sweep_file(search={"scheduler": "asha", "seed": FIRST, "final": {"seeds": 1}}, **CLEAR)
    plan, elsewhere = make(load(file)), Layout(tmp_path / "elsewhere")
    where = ("--address", node.address, "--storage", f"file://{tmp_path}/shared", "--set", "resources.gpu=0")
    for own in (layout, elsewhere):
        done = sweep(file, own, *where, OTKD_SCRATCH=str(tmp_path / own.root.name / "scratch"))
        assert done.returncode == 0, done.stdout + done.stderr
    found, again = ({key: end.status for key, end in ends(plan, own).items()} for own in (layout, elsewhere))
    assert found == again
    assert {"finished", "pruned"} == set(found.values())
    assert outcome(plan, layout).open == 0
    assert {event["key"] for event in journal(layout, "start")} == set(found)
    assert journal(elsewhere, "start") == []
    first, second = (Counter(event["key"] for event in journal(own, "epoch")) for own in (layout, elsewhere))
    assert first == second


def sweep(file, layout, *words, **variables):
    """The command line."""
    command = [
        sys.executable,
        "-c",
        "from otkd.cli import main; main()",
        "sweep",
        str(file),
        "--runs",
        str(layout.root),
    ]
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "OTKD_RUNS", "OTKD_STORAGE")
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, env=inherited | variables, check=False, timeout=400
    )
