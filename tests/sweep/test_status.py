"""`otkd status` from outside, and what is tried again after a failure."""

import json
import os
import time
from io import StringIO

import mlflow
import pytest
from rich.console import Console
from typer.testing import CliRunner

from otkd.cli import app
from otkd.core import names
from otkd.core.errors import OtkdError, TrackingError
from otkd.core.layout import write_text
from otkd.core.records import EpochRecord, TrialResult
from otkd.sweep import lock
from otkd.sweep.displays import JsonLines
from otkd.sweep.journal import Journal, PlanFile, SessionFile, journal_file, plan_file, read_session, session_file
from otkd.sweep.live import Progress
from otkd.sweep.run import Broadcast, clear_failures, ends, execute, failed_before, outcome, waits
from otkd.sweep.session import Session
from otkd.sweep.show import show_held, show_outcome
from otkd.sweep.status import as_json, headline, show_status, status
from otkd.sweep.tally import ToCome
from otkd.track.jsonl import JsonlSink


def epoch(trial, number, top1=50.0):
    values = {names.VAL_TOP1: top1, names.IMAGES_PER_S: 16.0}
    return EpochRecord(key=trial.key, epoch=number, epochs=2, metrics=values, time=time.time())


def end(trial, kind="finished", reason="", top1=70.0):
    metrics = {names.BEST_VAL_TOP1: top1} if kind == "finished" else {}
    return TrialResult(key=trial.key, status=kind, metrics=metrics, started=0.0, ended=1.0, reason=reason)


class Driver:
    """What a driver leaves behind, with the lock in its hands until it is released."""

    def __init__(self, plan, layout):
        self.lock = lock.take(layout, plan.info.name)
        self.plan = PlanFile(layout, plan.info)
        self.progress = Progress(plan, SessionFile(layout, plan.info.name))
        self.progress.slots = lambda cpu: 3
        self.listener = Broadcast(self.progress, JsonlSink(journal_file(layout, plan.info.name)))
        self.gone = False

    def leave(self):
        """Let go of the lock, as the system does for a process that ends."""
        if not self.gone:
            self.lock.release()
        self.gone = True


@pytest.fixture
def driver(plan, layout):
    """The teacher is done, two students run, one of them in its first epoch."""
    made = Driver(plan, layout)
    teacher, students = plan.teachers[0].trial, [item.trial for item in plan.students]
    made.listener.start(teacher)
    made.listener.epoch(epoch(teacher, 1))
    made.listener.finish(end(teacher))
    made.progress.begin_stage("students", students, students)
    for trial in students[:2]:
        made.listener.start(trial)
    made.listener.epoch(epoch(students[0], 1, 61.5))
    yield made
    made.leave()


def printed(found):
    console = Console(width=200, file=StringIO())
    show_status(found, console)
    return console.file.getvalue()


def test_while_it_runs(plan, layout, driver):
    pulse = layout.trial(plan.students[1].trial.key).pulse
    write_text(pulse, "")
    found = status(layout)
    assert found.owner.sweep == "tiny"
    assert found.view.counts._asdict() == {
        "done": 1, "running": 2, "failed": 0, "pruned": 0, "diverged": 0, "to_do": 2
    }  # fmt: skip
    assert (found.view.busy, found.view.slots) == (2, 3)
    assert [(row.title[-16:], row.record and row.record.epoch) for row in found.view.rows] in (
        [("student · seed 0", 1), ("student · seed 1", None)],
        [("student · seed 1", None), ("student · seed 0", 1)],
    )
    assert all(0 <= row.heard_s < 60 for row in found.view.rows)
    shown = printed(found)
    for part in ("running, students: process", "61.50 % val", "starting", "teachers 1/1, students 0/4"):
        assert part in shown
    tree = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert (tree["running"], tree["stage"], tree["counts"]["running"]) == (True, "students", 2)
    assert {row["top1"] for row in tree["trials"]} == {61.5, None}


def test_after_it(plan, layout, driver):
    students = [item.trial for item in plan.students]
    driver.listener.finish(end(students[0], "diverged", "the loss became infinite"))
    for trial in students[1:]:
        driver.listener.finish(end(trial))
    driver.listener.note("something <odd> [red]")
    driver.progress.end("finished")
    driver.leave()
    found = status(layout, "tiny")
    assert found.owner is None
    assert found.view.counts[:5] == (4, 0, 0, 0, 1)
    assert [(best.title, best.seeds) for best in found.view.best] == [
        ("resnet8 ← resnet14 · student", 1),
        ("resnet8 ← resnet14 · kd", 2),
    ]
    assert ", finished 2" in headline(found)
    assert "student · seed 0: diverged: the loss became infinite" in printed(found)
    assert "something <odd> [red]" in printed(found)


def test_of_a_killed_driver_nothing_runs(layout, driver):
    driver.leave()
    found = status(layout)
    assert (found.view.counts.running, found.view.counts.to_do) == (0, 4)
    assert "broken off without a word" in headline(found)
    assert (found.view.left_s, found.view.slots) == (None, 0)


def test_after_a_stop_begun_trials_are_named_with_their_epoch(plan, layout, driver):
    """Also those that an earlier session began; one that went on is not among them."""
    for item in plan.students[:2]:
        write_text(layout.trial(item.trial.key).checkpoint, "")
    assert status(layout).begun == ()  # they are in training
    driver.progress.end("stopped")
    driver.leave()
    again = Driver(plan, layout)
    again.progress.end("stopped")
    again.leave()
    titles = [item.label.title for item in plan.students[:2]]
    shown, tree = printed(status(layout)), as_json(status(layout))
    assert f"{titles[0]}: begun, epoch 1/2, goes on from there" in shown
    assert f"{titles[1]}: begun, goes on from there" in shown
    assert [(row["title"], row["epoch"]) for row in tree["begun"]] == [(titles[0], 1), (titles[1], None)]


def test_a_refused_sweep_is_not_said_to_go_on_as_it_is(layout, driver):
    driver.progress.end("failed", "t.pt does not fit")
    driver.leave()
    assert headline(status(layout)).endswith("t.pt does not fit; mend that, and the same command goes on from here")


def test_trials_of_a_killed_driver_do_not_run_while_the_next_one_starts(layout, driver):
    """The next one has the lock, and has not written its session yet: it opens the tracking store first."""
    driver.leave()
    file = session_file(layout, "tiny")
    old = read_session(layout, "tiny").model_copy(update={"pid": os.getpid() - 1})  # tests are one process
    write_text(file, old.model_dump_json())
    following = lock.take(layout, "tiny")
    found = status(layout)
    assert (found.view.counts.running, found.view.rows, found.view.slots) == (0, (), 0)
    assert headline(found).startswith(f"running, starting: process {os.getpid()} of")
    following.release()


def test_trials_of_an_earlier_session_do_not_run_now(plan, layout, driver):
    driver.leave()
    again = Driver(plan, layout)
    third = plan.students[3].trial
    again.listener.start(third)
    assert [row.key for row in status(layout).view.rows] == [third.key]
    again.leave()


def test_a_trial_that_another_sweep_has_trained_is_done(plan, layout, driver):
    trial = plan.students[2].trial
    folder = layout.trial(trial.key)
    write_text(folder.trial, trial.model_dump_json())
    write_text(folder.result, end(trial).model_dump_json())
    assert status(layout).view.counts.done == 2


def test_a_torn_or_strange_line_is_passed_over(plan, layout, driver):
    file = journal_file(layout, "tiny")
    with file.open("ab") as stream:
        stream.write(
            b'not ours\n{"event": "session", "key": "x"}\n{"event": "finish", "key": "' + b"0" * 16 + b'", "sta'
        )
    assert status(layout).view.counts.running == 2
    key = plan.students[0].trial.key
    assert Journal(file).last(key).metrics[names.VAL_TOP1] == 61.5


def test_an_unknown_sweep_is_answered_with_those_there_are(layout, plan):
    with pytest.raises(OtkdError, match="no sweep was run in"):
        status(layout)
    PlanFile(layout, plan.info.model_copy(update={"name": "tiny-quick", "profile": "quick"}))
    assert status(layout, "tiny").info.name == "tiny-quick"  # the profile may be left out
    with pytest.raises(OtkdError, match=r"there is no sweep 'tony'; there is tiny-quick"):
        status(layout, "tony")
    plan_file(layout, "tiny-quick").write_text("{", encoding="utf-8")
    with pytest.raises(OtkdError, match="is damaged"):
        status(layout, "tiny-quick")


def test_a_sweep_that_has_the_lock_and_no_plan_yet_is_starting(layout, plan):
    """It opens the tracking store first."""
    first = lock.take(layout, "tiny")
    with pytest.raises(OtkdError, match=f"a sweep is starting: process {os.getpid()} of"):
        status(layout)
    PlanFile(layout, plan.info.model_copy(update={"name": "older"}))
    with pytest.raises(OtkdError, match="a sweep is starting"):
        status(layout, "tiny")
    assert status(layout).info.name == "older"
    first.release()


def searching(plan, layout, new):
    """A driver whose search has drawn four trials, one of which has ended, and may draw so many more."""
    labels = [label.model_copy(update={"stage": "search"}) for label in plan.info.labels]
    driver = Driver(plan._replace(info=plan.info.model_copy(update={"labels": tuple(labels)})), layout)
    driver.progress.begin_stage("search", [], [], ToCome(new + 3), new)
    driver.listener.start(plan.students[0].trial)
    driver.listener.finish(end(plan.students[0].trial))
    return driver


def test_of_a_search_it_says_what_may_come(plan, layout):
    driver = searching(plan, layout, new=3)
    shown = printed(status(layout))
    assert ("search 1 of at most 7" in shown, "best so far" in shown) == (True, True)
    driver.progress.end("stopped")
    driver.leave()
    assert "search 1 of at most 7" in printed(status(layout))


def test_of_a_search_that_is_over_it_says_what_there_was(plan, layout):
    driver = searching(plan, layout, new=3)
    for item in plan.students[1:]:
        driver.listener.finish(end(item.trial))
    driver.progress.end("finished")
    driver.leave()
    shown = printed(status(layout))
    assert ("search 4/4" in shown, "so far" in shown) == (True, False)


def test_the_plan_grows_with_a_search(plan, layout):
    file = PlanFile(layout, plan.info)
    extra = plan.students[0].label.model_copy(update={"key": "f" * 16})
    file.plan(plan.info.model_copy(update={"labels": (*plan.info.labels, extra)}))
    file.close()
    assert status(layout).view.counts.to_do == 6


class Away:
    """A tracking store that is away."""

    def __init__(self, info, layout):
        pass

    def close(self):
        raise TrackingError("no answer")


def test_the_plan_is_whole_also_where_the_tracking_store_is_away(plan, layout, monkeypatch):
    monkeypatch.setattr("otkd.sweep.session.MlflowSink", Away)
    extra = plan.students[0].label.model_copy(update={"key": "f" * 16})
    with pytest.raises(TrackingError, match="no answer"), Session(plan, layout, Console(file=StringIO())) as session:
        session.progress.plan(plan.info.with_labels([extra]))
    assert extra in status(layout).info.labels
    assert read_session(layout, "tiny").ended == "failed"


def test_the_session_says_what_it_does(plan, layout, driver):
    session = read_session(layout, "tiny")
    assert (session.stage, session.busy, session.slots, session.ended) == ("students", 2, 3, "")
    driver.progress.end("failed", "the disk is full")
    session = read_session(layout, "tiny")
    assert (session.ended, session.reason, session.busy) == ("failed", "the disk is full", 0)


@pytest.mark.timeout(60)
def test_a_journal_of_two_thousand_trials_is_read_in_two_seconds(plan, layout):
    """2,000 trials of 50 epochs of 14 figures: 100,000 lines, 45 MB."""
    label = plan.students[0].label
    keys = [f"{number:016x}" for number in range(2000)]
    labels = tuple(label.model_copy(update={"key": key, "seed": seed}) for seed, key in enumerate(keys))
    PlanFile(layout, plan.info.model_copy(update={"labels": labels}))
    figures = json.dumps({names.VAL_TOP1: 50.25, **{f"train/figure {i}": 1.0 / (i + 3) for i in range(13)}})
    with journal_file(layout, "tiny").open("w", encoding="utf-8") as file:
        for key in keys:
            file.write(f'{{"event": "start", "key": "{key}", "time": 1.0, "trial": {{"long": "{"x" * 2000}"}}}}\n')
            for number in range(1, 51):
                file.write(
                    f'{{"event": "epoch", "key": "{key}", "stage": "train", "epoch": {number}, "epochs": 50, '
                    f'"metrics": {figures}, "time": 1.0}}\n'
                )
            file.write(
                f'{{"event": "finish", "key": "{key}", "status": "finished", "metrics": '
                f'{{"{names.BEST_VAL_TOP1}": 70.0}}, "provenance": {{}}, "started": 0.0, "ended": 1.0, "reason": ""}}\n'
            )
    begin = time.perf_counter()
    found = status(layout, "tiny")
    assert time.perf_counter() - begin < 2
    assert found.view.counts.done == 2000
    assert found.view.best[0].seeds == 2000


class Scripted:
    """A runner whose trials end as they are told to, and as the engine would leave them."""

    def __init__(self, layout, kinds):
        self.layout, self.kinds, self.ran = layout, kinds, []

    def slots(self, cpu):
        return 2

    def run(self, cohorts, cpu, listener):
        for trial in (trial for cohort in cohorts for trial in cohort):
            self.ran.append(trial.key)
            folder, kind = self.layout.trial(trial.key), self.kinds.get(trial.key, "finished")
            write_text(folder.trial, trial.model_dump_json())
            folder.failed.unlink(missing_ok=True)
            listener.start(trial)
            if kind != "lost":
                made = end(trial, kind, "" if kind == "finished" else "OSError: gone")
                write_text(folder.failed if kind == "failed" else folder.result, made.model_dump_json())
                listener.finish(made)


def session(plan, layout, kinds, retry=False):
    """What the command does: returns the outcome, and what was tried."""
    if retry:
        clear_failures(plan, layout)
    held = failed_before(plan, layout)
    runner, progress = Scripted(layout, kinds), Progress(plan)
    execute(plan, runner, Broadcast(progress), progress, layout, held)
    return outcome(plan, layout), runner.ran, progress


def test_what_failed_is_tried_again_when_asked(plan, layout):
    bad = plan.students[1].trial
    ended, ran, _ = session(plan, layout, {bad.key: "failed"})
    assert ran.count(bad.key) == 2  # the retry of one run
    assert (ended.finished, ended.failed, ended.open) == (4, (f"{plan.students[1].label.title}: OSError: gone",), 1)
    ended, ran, _ = session(plan, layout, {})
    assert (ran, ended.open) == ([], 1)
    ended, ran, _ = session(plan, layout, {}, retry=True)
    assert (ran, ended.open) == ([bad.key], 0)


def test_what_was_only_interrupted_is_always_gone_on_with(plan, layout):
    """A worker that was lost leaves neither a result nor a failure; nobody shows it as running any more."""
    lost = plan.students[0].trial
    ended, _, progress = session(plan, layout, {lost.key: "lost"})
    assert ended.undone == (plan.students[0].label.title,)
    assert (progress.view().counts.failed, progress.view().counts.running) == (1, 0)
    ended, ran, _ = session(plan, layout, {})
    assert (ran, ended.open) == ([lost.key], 0)


def test_what_is_left_of_a_sweep_is_what_this_session_may_train(plan, layout):
    bad, lost = (item.trial for item in plan.students[:2])
    session(plan, layout, {bad.key: "failed", lost.key: "lost"})
    stream = StringIO()
    runner, progress = Scripted(layout, {}), Progress(plan, JsonLines(stream))
    execute(plan, runner, Broadcast(progress), progress, layout, failed_before(plan, layout))
    stage = json.loads(stream.getvalue().splitlines()[0])
    assert (stage["event"], stage["trials"], stage["left"]) == ("stage", 1, 1)


def test_students_wait_for_a_teacher_that_failed(plan, layout):
    teacher = plan.teachers[0].trial
    ended, ran, progress = session(plan, layout, {teacher.key: "failed"})
    assert set(ran) == {teacher.key}
    assert (len(ended.failed), len(ended.waiting), ended.undone) == (1, 4, ())
    assert all(waits(item.trial, ends(plan, layout)) for item in plan.students)
    assert (progress.view().counts.failed, progress.view().counts.running) == (1, 0)
    assert session(plan, layout, {})[1] == []
    console = Console(width=200, file=StringIO())
    show_held(len(failed_before(plan, layout)), console)
    assert show_outcome(plan, layout, console) == 1
    shown = console.file.getvalue()
    assert "1 trial failed before: --retry-failed tries it again." in shown
    assert shown.count("waiting for its teacher") == 4
    ended, ran, _ = session(plan, layout, {}, retry=True)
    assert (len(ran), ended.open) == (5, 0)


def test_what_diverged_is_tried_again_when_asked_and_its_result_stays(plan, layout):
    odd = plan.students[0].trial
    ended, _, _ = session(plan, layout, {odd.key: "diverged"})
    assert (ended.open, len(ended.diverged)) == (0, 1)
    assert session(plan, layout, {})[1] == []
    ended, ran, _ = session(plan, layout, {}, retry=True)
    assert (ran, ended.finished) == ([odd.key], 5)
    kept = json.loads((layout.trial(odd.key).path / "result.diverged.json").read_text(encoding="utf-8"))
    assert kept["status"] == "diverged"
    assert ends(plan, layout)[odd.key].status == "finished"


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run a command in this process."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "OTKD_DATA_DIR", "RAY_ADDRESS", "OTKD_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    yield lambda *words: CliRunner().invoke(app, [*map(str, words), "--runs", str(tmp_path / "runs")])
    mlflow.set_tracking_uri(None)  # takes back what it has put into the environment


def test_the_command_line(sweep_file, command):
    """A teacher that diverges, for real: what is told as JSON, what status says, and what is tried again."""
    file = sweep_file(
        teacher={"train": {"optimizer": {"name": "sgd", "lr": 1e30}}}, methods={"kd": {"kd": 1}}, seeds=[0]
    )
    sweep = ("sweep", file, "--local")
    first = command(*sweep, "--json")
    events = [json.loads(line) for line in first.stdout.splitlines()]
    assert first.exit_code == 1, first.output
    assert [event["event"] for event in events] == ["stage", "start", "finish", "end"]
    assert (events[2]["status"], events[3]["status"]) == ("diverged", "incomplete")
    assert "waiting for its teacher" in first.stderr
    found = json.loads(command("status", "--json").stdout)
    assert (found["running"], found["ended"], found["counts"]["diverged"]) == (False, "incomplete", 1)
    again = command(*sweep, "--quiet")
    assert (again.exit_code, "diverged: the loss became" in again.stdout) == (1, False)  # nothing was tried
    assert "--retry-failed tries again" in again.stdout
    assert ("tiny: " in first.stderr, "tiny: " in again.stdout, "report: " in again.stdout) == (True, False, True)
    retried = command(*sweep, "--quiet", "--retry-failed")
    assert (retried.exit_code, "diverged: the loss became" in retried.stdout) == (1, True)
    plan = command("plan", file)
    assert plan.exit_code == 0
    assert "waits for its teacher" in plan.stdout
    assert "the images of" not in plan.stdout  # digits come with a dependency
    missing = command("plan", file, "--set", "data.name=cifar100", "--set", "data.limit=500")
    assert "the images of cifar100 are not here: to be downloaded" in missing.stdout


def test_a_search_takes_up_what_other_sweeps_have_trained_without_its_storage(sweep_file, command, tmp_path):
    """Its candidate, and the teacher of its winner. It trains the winner again, and counts all."""
    parts = {"methods": {"kd": {"kd": 1}}, "seeds": [0], "train": {"epochs": 1, "batch_size": 32}}
    for val in (0, 0.2):
        file = sweep_file(**parts, data={"name": "digits", "val": val, "limit": 200})
        assert command("sweep", file, "--local", "--quiet").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("runs/trials/*/result.json")}
    searched = sweep_file(**parts, search={"final": {"seeds": 1}})
    last = command("sweep", searched, "--local", "--json", "--storage", f"file://{tmp_path}/shared")
    events = [json.loads(line) for line in last.stdout.splitlines()]
    assert last.exit_code == 0, last.output
    assert [event["title"][-14:] for event in events if event["event"] == "start"] == ["final · seed 1"]
    assert [events[-1][state] for state in ("status", "done", "running", "to_do")] == ["finished", 4, 0, 0]
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.glob("shared/trials/*/result.json"))) == 4
