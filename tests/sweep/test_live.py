"""What is told while a sweep runs."""

import json
import os
import time
from io import StringIO
from threading import Thread

import pytest
from rich.console import Console
from rich.live import Live

from otkd.core import names
from otkd.core.records import EpochRecord, TrialResult
from otkd.sweep import displays, live
from otkd.sweep.displays import JsonLines, Lines, LiveTable, Quiet, for_person, render, summary
from otkd.sweep.live import Progress
from otkd.sweep.plan import make
from otkd.sweep.spec import load
from otkd.sweep.tally import End, Tally, ToCome
from otkd.sweep.tried import Tried


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in (live, displays):
        monkeypatch.setattr(module.time, "monotonic", made)
    return made


@pytest.fixture
def plan(sweep_file):
    """A teacher of 4 epochs, two methods with two seeds, 2 epochs each, alone in their cohorts."""
    return make(load(sweep_file(teacher={"train": {"epochs": 4}}, resources={"cohort": 1})))


def record(trial, epoch, seconds=10.0, top1=50.0, stage="train"):
    """An epoch of 160 images that took so long, half of it the trial's own."""
    times = {names.OWN_S: seconds / 2, names.TEACHER_S: seconds / 4, names.DATA_S: seconds / 4, names.EVAL_S: 0.0}
    values = {**times, names.EPOCH_S: seconds, names.IMAGES_PER_S: 160 / seconds, names.VAL_TOP1: top1}
    epochs = trial.train.epochs
    return EpochRecord(key=trial.key, stage=stage, epoch=epoch, epochs=epochs, metrics=values, time=0.0)


def result(trial, top1=70.0, status="finished", reason=""):
    metrics = {names.BEST_VAL_TOP1: top1} if status == "finished" else {}
    return TrialResult(key=trial.key, status=status, metrics=metrics, started=0.0, ended=1.0, reason=reason)


def trials(plan):
    return plan.teachers[0].trial, [item.trial for item in plan.students]


def begin(plan, *shown):
    """Two slots, the teacher done, all students to train."""
    progress = Progress(plan, *shown)
    progress.slots = lambda cpu: 2
    teacher, students = trials(plan)
    progress.finish(result(teacher))
    progress.begin_stage("students", students, students)
    return progress, students


def text(view):
    console = Console(width=160, file=StringIO())
    console.print(render(view))
    return console.file.getvalue()


def test_counts_stages_and_slots(plan):
    progress, students = begin(plan)
    for trial in students[:2]:
        progress.start(trial)
    progress.finish(result(students[2], status="pruned", reason="stopped by asha after epoch 1"))
    view = progress.view()
    assert view.counts._asdict() == {"done": 1, "running": 2, "failed": 0, "pruned": 1, "diverged": 0, "to_do": 1}
    assert [tuple(stage) for stage in view.stages] == [("teachers", 1, 1), ("students", 1, 4)]
    assert (view.busy, view.slots) == (2, 2)
    progress.finish(result(students[0], status="failed", reason="OSError: gone"))
    progress.start(students[0])  # tried again
    assert (progress.view().counts.failed, progress.view().counts.running) == (0, 2)
    progress.start(students[2])  # a pruned one, gone on with
    assert (progress.view().stages[1].ended, progress.view().busy) == (0, 3)
    progress.begin_stage("students", students[3:], students[3:])
    assert progress.view().counts.running == 0


def test_time_left_is_by_kind_and_slot(plan, clock):
    """Epochs of the methods take 10 s and 30 s; two slots; the final test goes forward at no cost here."""
    progress, _ = begin(plan)
    by_method = {item.label.method: item.trial for item in plan.students if item.label.seed == 0}
    for method, seconds in (("student", 10.0), ("kd", 30.0)):
        progress.start(by_method[method])
        progress.epoch(record(by_method[method], 1, seconds))
    clock.now += live.ESTIMATE_EVERY_S
    left = progress.view().left_s
    # one epoch of each is left, two epochs of each of the others: 10 + 60 on one slot, 30 + 20 on the other
    assert left == pytest.approx(70 - 2, abs=1.0)
    clock.now += 5
    assert progress.view().left_s == pytest.approx(left - 5, abs=0.1)
    rows = {row.key: row.left_s for row in progress.view().rows}
    assert rows[by_method["kd"].key] == pytest.approx(30 - 7, abs=0.1)


def test_a_search_promises_no_end(sweep_file, clock):
    """What it has begun is not all that it will try, and some of that it will stop."""
    space = {"methods.kd.kd.weight": {"uniform": [1, 2]}}
    plan = make(load(sweep_file(search={"kind": "random", "space": space, "samples": 9})))
    [first, *_] = plan.known(plan.studies[1])
    trials = [item.trial for item in first.planned]
    progress = Progress(plan._replace(info=plan.info.with_labels(item.label for item in first.planned)))
    progress.slots = lambda cpu: 2
    progress.finish(result(plan.teachers[0].trial))
    progress.begin_stage("search", [], [], ToCome(16), new=14)
    for trial in trials:
        progress.start(trial)
        progress.epoch(record(trial, 1))
    clock.now += live.ESTIMATE_EVERY_S
    progress.finish(result(trials[0]))
    assert "teachers 1/1, search 1 of at most 16" in text(progress.view())
    assert "best so far" in text(progress.view())
    assert progress.view().left_s is None
    progress.begin_stage("students", [], [])  # it has drawn no more
    assert "teachers 1/1, search 1/2" in text(progress.view())


def test_the_teacher_of_a_search_promises_no_end_and_says_what_may_come(sweep_file, clock, layout):
    space = {"methods.kd.kd.weight": {"uniform": [1, 2]}}
    search = {"kind": "random", "space": space, "samples": 5, "final": {"seeds": 3}}
    plan = make(load(sweep_file(search=search)))  # two studies, one of them with nothing to search
    stream, [teacher] = StringIO(), plan.trials.values()
    progress = Progress(plan, JsonLines(stream))
    to_come = Tried(plan, layout).to_come
    progress.begin_stage("teachers", [teacher], [teacher], to_come)
    progress.start(teacher)
    progress.epoch(record(teacher, 1))
    clock.now += live.ESTIMATE_EVERY_S
    assert progress.view().left_s is None
    progress.begin_stage("search", [], [], to_come)
    first, *_, last = [json.loads(line) for line in stream.getvalue().splitlines()]
    searched, finals = (5 + 1) * 2, 2 * 3 + 1
    assert (first["trials"], first["left"]) == (1, 1 + searched + finals)
    assert (last["trials"], last["left"]) == (searched, searched + finals)


def test_a_budget_bounds_what_may_come(sweep_file, layout):
    """Two trials for each configuration: the third takes the fifth trial of the budget, and one more."""
    space = {"methods.kd.kd.weight": {"uniform": [1, 2]}}
    search = {"kind": "random", "space": space, "samples": 5, "budget": {"trials": 5}}
    assert Tried(make(load(sweep_file(search=search))), layout).to_come == (6, 0)


def test_a_teachers_epochs_say_nothing_of_students(plan, clock):
    progress = Progress(plan)
    progress.slots = lambda cpu: 2
    teacher, students = trials(plan)
    progress.begin_stage("teachers", [teacher], [teacher, *students])
    progress.start(teacher)
    progress.epoch(record(teacher, 1, 100.0))
    clock.now += live.ESTIMATE_EVERY_S
    assert progress.view().left_s is None
    assert progress.view().rows[0].left_s == pytest.approx(300 - 2)


def test_cohorts_share_a_slot(sweep_file):
    plan = make(load(sweep_file(resources={"cohort": 2})))
    progress, students = begin(plan)
    for trial in students:
        progress.start(trial)
    assert progress.view().busy == 2  # one for each seed


def test_best_is_the_mean_over_finished_seeds(plan):
    progress, _ = begin(plan)
    values = {("kd", 0): 60.0, ("kd", 1): 70.0, ("student", 0): 64.0}
    for item in plan.students:
        if (item.label.method, item.label.seed) in values:
            progress.finish(result(item.trial, values[item.label.method, item.label.seed]))
    best = progress.view().best
    assert [(found.title, found.top1, found.seeds, found.rule) for found in best] == [
        ("resnet8 ← resnet14 · kd", 65.0, 2, "val"),
        ("resnet8 ← resnet14 · student", 64.0, 1, "val"),
    ]


def test_of_a_methods_variants_the_best_counts_and_a_searchs_test_figures_do_not(plan):
    labels = [
        item.label.model_copy(update={"axes": {"kd.temperature": index % 2}, "method": "kd"})
        for index, item in enumerate(plan.students)
    ]
    searched = plan.teachers[0].label.model_copy(
        update={"key": "c", "role": "student", "method": "tuned", "stage": "search"}
    )
    tally = Tally([*labels, searched])
    for value, label in zip((50.0, 61.0, 70.0, 63.0), labels, strict=True):
        tally.end(label.key, End("finished", {names.test("last", "top1"): value}))
    tally.end("c", End("finished", {names.test("last", "top1"): 99.0}))
    assert [tuple(found) for found in tally.best()] == [
        ("resnet8 ← resnet14 · kd · temperature=1", 62.0, 2, "test, last epoch")
    ]


def test_a_table_shows_trials_and_methods(plan, clock):
    progress, students = begin(plan)
    progress.start(students[0])
    assert "starting" in text(progress.view())
    progress.epoch(record(students[0], 1, 10.0, 51.234))
    progress.finish(result(students[1], 66.0))
    shown = text(progress.view())
    for part in ("teachers 1/1, students 1/4", "1 of 2 slots busy", "2 done, 1 running, 2 to do"):
        assert part in shown
    row = next(line for line in shown.splitlines() if line.startswith("resnet8 ← resnet14 · student · seed 0"))
    assert row.split("seed 0")[1].split() == ["1/2", "51.23", "%", "val", "16", "10", "s"]
    assert "66.00 %" in shown


def test_lines_come_every_ten_seconds_and_for_every_event(plan, clock):
    console = Console(width=200, file=StringIO())
    progress, students = begin(plan, Lines(console))
    for epoch in range(1, 40):
        progress.epoch(record(students[0], epoch))
        clock.now += 1
    progress.note("a worker was lost [red]")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "students: 4 to train"
    assert lines[-1] == "! a worker was lost [red]"
    assert len(lines) == 2 + 3
    assert all("students 0/4" in line for line in lines[1:-1])


def test_quiet_prints_problems_alone(plan):
    console = Console(width=200, file=StringIO())
    progress, students = begin(plan, for_person(console, quiet=True))
    assert isinstance(progress.displays[0], Quiet)
    progress.epoch(record(students[0], 1))
    progress.finish(result(students[0], status="pruned", reason="stopped by asha"))
    progress.finish(result(students[1], status="diverged", reason="the loss became infinite"))
    [line] = console.file.getvalue().splitlines()
    assert line == "! resnet8 ← resnet14 · student · seed 1: diverged: the loss became infinite"


def test_json_has_an_event_a_line_that_any_reader_takes(plan):
    stream = StringIO()
    progress, students = begin(plan, JsonLines(stream))
    progress.start(students[0])
    progress.epoch(record(students[0], 1, top1=float("nan")))
    progress.note("[red]é\n")
    progress.finish(result(students[0]))
    progress.end("incomplete")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    events = [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["finish", "stage", "start", "epoch", "note", "finish", "end"]
    assert events[1]["stage"] == "students"
    assert (events[2]["method"], events[2]["seed"], events[2]["key"]) == ("student", 0, students[0].key)
    assert events[3]["metrics"][names.VAL_TOP1] is None
    assert events[4]["text"] == "[red]é\n"
    assert (events[-1]["status"], events[-1]["done"], events[-1]["to_do"]) == ("incomplete", 2, 3)


def test_when_all_has_ended_nothing_runs(plan):
    """Workers that were asked to stop tell of no end."""
    stream = StringIO()
    progress, students = begin(plan, JsonLines(stream))
    progress.start(students[0])
    progress.end("stopped")
    end = json.loads(stream.getvalue().splitlines()[-1])
    assert (end["done"], end["running"], end["to_do"]) == (1, 0, 4)


@pytest.mark.parametrize(("stage", "name"), [("search", "search/test/last/top1"), ("final", "test/last/top1")])
def test_the_test_figures_of_a_candidate_have_a_name_of_their_own(plan, stage, name):
    stream, item = StringIO(), plan.students[0]
    progress = Progress(plan, JsonLines(stream))
    progress.plan(plan.info.model_copy(update={"labels": (item.label.model_copy(update={"stage": stage}),)}))
    figures = {names.BEST_VAL_TOP1: 71.0, names.test("last", "top1"): 70.0}
    progress.finish(result(item.trial).model_copy(update={"metrics": figures}))
    assert json.loads(stream.getvalue())["metrics"] == {names.BEST_VAL_TOP1: 71.0, name: 70.0}


def test_training_goes_on_when_nobody_reads_its_events_any_more(plan):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        progress = Progress(plan, JsonLines(stream))
        progress.note("heard")
        assert json.loads(os.read(reader, 1000))["text"] == "heard"
        os.close(reader)
        progress.start(plan.students[0].trial)
        assert progress.unfinished() == [plan.students[0].trial.key]
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # takes what is left when the stream is closed


def test_a_live_table_goes_on_while_events_rain(plan):
    """Its thread asks for the view in the middle of events; neither waits for the other for ever."""
    console = Console(width=120, file=StringIO(), force_terminal=True)
    progress, students = begin(plan, for_person(console))
    assert isinstance(progress.displays[0], LiveTable)
    until, epoch = time.monotonic() + 1.5, 0
    while time.monotonic() < until:
        epoch += 1
        progress.start(students[epoch % 4])
        progress.epoch(record(students[epoch % 4], epoch))
        if epoch % 50 == 0:
            progress.note(f"event {epoch}")
    progress.close()
    assert "event 50" in console.file.getvalue()
    assert "images/s" in console.file.getvalue()


def test_two_threads_begin_one_table(plan, monkeypatch):
    made = []

    class Slow(Live):
        """Takes long enough to be begun by two."""

        def __init__(self, **options):
            made.append(self)
            time.sleep(0.05)
            super().__init__(**options)

    monkeypatch.setattr(displays, "Live", Slow)
    table, progress = LiveTable(Console(width=120, file=StringIO(), force_terminal=True)), Progress(plan)
    threads = [Thread(target=table.show, args=(progress.view,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table.close()
    table.show(progress.view)
    assert len(made) == 1


def test_a_summary_is_one_line(plan):
    progress, students = begin(plan)
    progress.finish(result(students[0], 66.0))
    line = summary(progress.view())
    assert "\n" not in line
    assert line.endswith("best resnet8 ← resnet14 · student 66.00 % (val, n=1)")


def test_labels_grow(plan):
    kept = []
    progress = Progress(plan, keep=kept.append)
    extra = plan.students[0].label.model_copy(update={"key": "new"})
    progress.plan(plan.info.model_copy(update={"labels": (*plan.info.labels, extra)}))
    assert progress.view().counts.to_do == 6
    assert kept[0].labels[-1] == extra
