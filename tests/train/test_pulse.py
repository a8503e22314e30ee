"""Training that is asked to stop, shows that it lives, and has a deadline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Sgd, Train
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, Environment, engine, fit, pulse
from otkd.train.distributed import Group
from otkd.train.pulse import Pulse, Stopped
from otkd.train.student import Student

WORKER = Path(__file__).with_name("stopped_worker.py")
OBJECTIVES = {
    "kd": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}},
    "warm": {"ce": {}, "transport": {"points": "channel", "layer": 3, "warm_start": True}},
    "staged": {"ce": {}, "fitnet": {"stages": {"epochs": 1, "lr": 0.01}}},
    "wkd": {"ce": {}, "wkd_logit": {"layer": "stage3", "side": 1}},
}
RECIPE = Train(epochs=3, batch_size=32, optimizer=Sgd(name="sgd", lr=0.05), ema=0.9)


@pytest.fixture
def asked_at(monkeypatch):
    """Have somebody ask to stop when a function is called for the n-th time; every beat looks."""
    monkeypatch.setattr(pulse, "EVERY_S", 0.0)

    def install(environment, owner, name, number):
        original, calls = getattr(owner, name), []

        def watched(*args, **options):
            calls.append(1)
            if len(calls) == number:
                environment.layout.stop.touch()
            return original(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    return install


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    """Trains a cohort without a stop, the same one once alone; its environment and results."""
    known = {}

    def run(trials):
        key = tuple(trial.key for trial in trials)
        if key not in known:
            root = tmp_path_factory.mktemp("undisturbed") / "runs"
            shutil.copytree(cache, root)
            there = Environment(Layout(root), device="cpu")
            known[key] = there, fit(trials, Mailbox(), there)
        return known[key]

    return run


def kept(environment, trial):
    return torch.load(environment.layout.trial(trial.key).last, weights_only=True)


def assert_same(here, there, trials, results, expected):
    """Weights and figures, but for the times."""
    timed = ("time/", "memory/", "energy/", "system/", names.LATENCY_MS)
    for trial, one, two in zip(trials, results, expected, strict=True):
        assert (one.status, two.status) == ("finished", "finished"), (one.reason, two.reason)
        for mine, theirs in zip((one, *one.epochs), (two, *two.epochs), strict=True):
            same = [name for name in theirs.metrics if not name.startswith(timed) and "latency" not in name]
            assert {name: mine.metrics[name] for name in same} == {name: theirs.metrics[name] for name in same}
            assert len(same) > 3
        weights = kept(here, trial)
        for name, tensor in kept(there, trial).items():
            assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize(
    ("owner", "name", "number", "ended"),
    [
        (Student, "train_step", 9, 0),  # in the middle of an epoch
        (engine, "evaluate", 2, 0),  # between the epochs of two members
        (CohortTrainer, "_final_figures", 2, 2),  # the second is measured to its end, the others wait
        (Student, "observe", 1, 0),  # before the first step: nothing to save
        (CohortTrainer, "save", 1, 0),
    ],
)
def test_stopped_and_gone_on_it_ends_as_if_undisturbed(
    environment, trial, undisturbed, asked_at, owner, name, number, ended
):
    trials = [trial(objective, train=RECIPE) for objective in OBJECTIVES.values()]
    there, expected = undisturbed(trials)
    here = environment("stopped", heed_stop=True, checkpoint_s=0.2)
    asked_at(here, owner, name, number)
    mailbox = Mailbox()
    results = fit(trials, mailbox, here)
    assert len(results) == ended
    assert here.layout.stop.exists(), "whoever asked removes it"
    assert not here.layout.trial(trials[-1].key).done
    here.layout.stop.unlink()
    results = fit(trials, mailbox, here)
    assert_same(here, there, trials, results, expected)
    events = [json.loads(text) for kind, text in mailbox.take() if kind == "epoch"]
    told = [(event["key"], event["stage"], event["epoch"]) for event in events]
    assert len(told) == len(set(told)) == 3 * 4 + 1, "each epoch once"


def test_it_stops_at_once_with_a_checkpoint_of_where_it_stands(environment, trial, asked_at):
    here = environment(heed_stop=True, checkpoint_s=1e6)
    asked_at(here, Student, "train_step", 6)
    trainer = CohortTrainer([trial("kd")], Mailbox(), here)
    assert [len(trainer.step()) for _ in range(3)] == [1, 0, 0]
    assert (trainer.stopped, trainer.done) == (True, False)
    assert trainer.students[0].place == (2, 2)
    here.layout.stop.unlink()
    assert CohortTrainer([trial("kd")], Mailbox(), here).students[0].place == (2, 2)


def test_times_go_on_where_a_stop_in_the_evaluation_left_them(environment, trial, asked_at, monkeypatch):
    """The first of two is through with its epoch, the second is being evaluated."""
    here, trials = environment(heed_stop=True), [trial("kd"), trial("at")]
    asked_at(here, engine, "evaluate", 2)
    monkeypatch.setattr(CohortTrainer, "_shared", lambda self: (3.0, 5.0, 0.0, 0.0))
    assert fit(trials, Mailbox(), here) == []
    here.layout.stop.unlink()
    monkeypatch.setattr(CohortTrainer, "_shared", lambda self: engine.NOTHING)
    for result in fit(trials, Mailbox(), here):
        first, second = (record.metrics for record in result.epochs[:2])
        assert (first[names.TEACHER_S], first[names.DATA_S]) == (3.0, 5.0)
        assert (second[names.TEACHER_S], second[names.DATA_S]) == (0.0, 0.0)


def test_nobody_stops_who_does_not_heed(environment, trial):
    here = environment()
    here.layout.stop.touch()
    assert fit([trial("kd")], Mailbox(), here)[0].status == "finished"


def test_asked_before_the_beginning_it_does_nothing(environment, trial):
    here = environment(heed_stop=True)
    here.layout.stop.touch()
    mailbox = Mailbox()
    assert fit([trial("kd")], mailbox, here) == []
    assert mailbox.take() == []
    assert not here.layout.trial(trial("kd").key).path.exists()


def test_the_pulse_is_touched_once_a_second_at_most(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pulse, "time", SimpleNamespace(monotonic=lambda: clock.now))
    file, seen = tmp_path / "pulse", []
    beating = Pulse(Group(), tmp_path / "stop", lambda: [file, tmp_path / "missing" / "pulse"])
    for clock.now in (100.0, 100.5, 100.9, 101.0, 101.5, 102.5):
        file.unlink(missing_ok=True)
        beating.beat()
        seen.append(file.exists())
    assert seen == [True, False, False, True, False, True]
    (tmp_path / "stop").touch()
    clock.now = 102.9
    beating.beat()
    clock.now = 103.5
    with beating.deferring():
        beating.beat()
    with pytest.raises(Stopped):
        beating.beat()


def test_a_trial_shows_its_pulse_until_it_has_ended(environment, trial, monkeypatch):
    here, seen = environment(), []
    folders = [here.layout.trial(trial(method).key) for method in ("kd", "at")]
    step = Student.train_step
    monkeypatch.setattr(pulse, "EVERY_S", 0.0)
    monkeypatch.setattr(
        Student, "train_step", lambda *args: seen.append([f.pulse.exists() for f in folders]) or step(*args)
    )
    fit([trial("kd"), trial("at")], Mailbox(), here)
    assert seen[2:] == [[True, True]] * (len(seen) - 2)
    assert [folder.pulse.exists() for folder in folders] == [False, False]


def test_a_trial_past_its_deadline_fails_and_goes_on_with_a_longer_one(environment, trial, undisturbed, monkeypatch):
    monkeypatch.setattr(engine, "SAVING", 1e9)
    there, expected = undisturbed([trial("kd")])
    here = environment("late", deadline_s=0.05, checkpoint_s=0.0)
    [late] = fit([trial("kd")], Mailbox(), here)
    folder = here.layout.trial(trial("kd").key)
    assert late.status == "failed"
    assert late.reason.startswith("DeadlineError: it has trained for ")
    assert "resources.deadline_h" in late.reason
    assert TrialResult.model_validate_json(folder.failed.read_text()) == late
    assert folder.checkpoint.exists()
    longer = environment("late")
    results = fit([trial("kd")], Mailbox(), longer)
    assert_same(longer, there, [trial("kd")], results, expected)
    assert not folder.failed.exists()


def test_the_deadline_counts_what_was_trained_before_an_interruption(environment, trial):
    first = CohortTrainer([trial("kd")], Mailbox(), environment())
    first.step()
    first.save()
    [before] = first.students
    again = CohortTrainer([trial("kd")], Mailbox(), environment())
    assert again._trained_s(again.students[0]) == pytest.approx(before.history[0].metrics[names.EPOCH_S], rel=1e-6)


def test_a_failure_is_kept_until_training_begins_again(environment, trial, monkeypatch):
    here, there = environment(), []
    folder = here.layout.trial(trial("kd").key)

    def fail(self, *_):
        there.append(folder.failed.exists())
        raise RuntimeError("no luck")

    monkeypatch.setattr(Student, "train_step", fail)
    for _ in range(2):
        [result] = fit([trial("kd")], Mailbox(), here)
        assert TrialResult.model_validate_json(folder.failed.read_text()) == result
    assert there == [False, False]


@pytest.mark.long
def test_two_processes_stop_at_the_same_batch_and_go_on(environment, trial):
    """Asked by the first alone, at its fifth step of eight; then to the end, as if undisturbed."""
    recipe = RECIPE.model_copy(update={"epochs": 2, "batch_size": 15})
    made = [trial(OBJECTIVES[name], train=recipe) for name in ("kd", "warm")]
    there, here = environment("undisturbed"), environment("stopped")
    two_processes(there, made, stop_at=0)
    stopped = two_processes(here, made, stop_at=5)
    assert stopped == [{"stopped": True, "places": [[1, 5], [1, 5]]}] * 2
    here.layout.stop.unlink()
    assert two_processes(here, made, stop_at=0) == [{"stopped": False, "places": []}] * 2
    for own in made:
        weights = kept(here, own)
        assert all(torch.equal(weights[name], tensor) for name, tensor in kept(there, own).items())


def two_processes(environment, trials, stop_at):
    """What each of two processes says in the end."""
    root = environment.layout.root
    (root / "cohort.jsonl").write_text("\n".join(trial.model_dump_json() for trial in trials))
    (root / "meeting").unlink(missing_ok=True)
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(root), str(rank), str(stop_at)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [json.loads(text.splitlines()[-1]) for text in said]
