"""How long trials take: by hand, from invented results."""

import json
import os
from io import StringIO

import pytest
from rich.console import Console

from otkd.core import names
from otkd.core.errors import ConfigError
from otkd.core.layout import write_text
from otkd.core.records import EpochRecord, TrialResult
from otkd.sweep.contest import Contest
from otkd.sweep.earlier import Pace, earlier, kinds, pace_of
from otkd.sweep.estimate import Clock, Machine, Paces, Task, images, makespan, measured, of_plan, stages_of, wider
from otkd.sweep.journal import journal_file
from otkd.sweep.plan import make
from otkd.sweep.runner import Mailbox
from otkd.sweep.search import draw
from otkd.sweep.searchers import Begun, Ending, Log, Report
from otkd.sweep.show import show_plan
from otkd.sweep.spec import load
from otkd.sweep.tried import Tried, id_of, winners
from otkd.track.jsonl import JsonlSink

CPU = "CPU, 1 thread"
PACE = Pace(own_s=0.001, shared_s=0.002, eval_s=0.0005)
TEST_IMAGES = 500
"""Of digits."""


def metrics(own=1.6, teacher=0.3, data=0.1, evaluation=0.02, images=160):
    """One epoch of so many seconds; the pace of `PACE` but for the shared part."""
    whole = own + teacher + data
    times = {names.OWN_S: own, names.TEACHER_S: teacher, names.DATA_S: data, names.EVAL_S: evaluation}
    return {**times, names.EPOCH_S: whole, names.IMAGES_PER_S: images / whole}


def keep(layout, trial, status="finished", device=CPU, **seconds):
    """Have a trial ended in `runs/`."""
    epoch = EpochRecord(key=trial.key, epoch=1, epochs=1, metrics=metrics(**seconds), time=0.0)
    result = TrialResult(
        key=trial.key,
        status=status,
        metrics={names.BEST_VAL_TOP1: 71.5, "model/params": 3.0},
        epochs=(epoch,),
        provenance={"device": device},
        started=0.0,
        ended=9.0,
    )
    folder = layout.trial(trial.key)
    write_text(folder.trial, trial.model_dump_json())
    write_text(folder.result, result.model_dump_json())
    return folder


def test_waiting_work_is_dealt_to_the_slots_longest_first():
    assert makespan(2, [3.0], [1.0, 4.0, 2.0]) == 5.0  # 4 on the free slot; 2 after 3; 1 after 4
    assert makespan(3, [], [2.0]) == 2.0
    assert makespan(2, [1.0, 7.0, 2.0], []) == 7.0
    assert makespan(1, [], []) == 0.0


def test_images_of_a_trial(plan):
    data = plan.students[0].trial.data
    assert images(data) == (160, 40, 2 * TEST_IMAGES)
    assert images(data.model_copy(update={"val": 7, "limit": None})) == (1297 - 7, 7, 2 * TEST_IMAGES)
    assert images(data.model_copy(update={"val": 0})) == (200, 0, TEST_IMAGES)


def test_a_cohort_pays_for_its_teacher_and_its_batches_once(plan):
    paces = Paces()
    trials = [item.trial for item in plan.students if item.label.seed == 0]
    for trial in trials:
        paces.add(trial.key, kinds(trial.model_dump(mode="json")), (CPU,), PACE)
    clock = Clock(paces, lambda trial: (CPU,))
    test = 2 * TEST_IMAGES * 0.0005
    own = 160 * 0.001 + 40 * 0.0005
    assert clock.cohort([Task(trials[0], 3)]) == pytest.approx(3 * (own + 160 * 0.002) + test)
    together = clock.cohort([Task(trials[0], 3), Task(trials[1], 5)])
    assert together == pytest.approx(8 * own + 5 * 160 * 0.002 + 2 * test)
    assert clock.cohort([Task(plan.teachers[0].trial, 1)]) is None


def test_the_pace_of_an_epoch_is_by_image():
    assert pace_of(0.2, [metrics()]).model_dump() == pytest.approx(
        {"own_s": 0.01, "shared_s": 0.0025, "eval_s": 0.0005}
    )
    assert pace_of(80, [metrics()]).eval_s == pytest.approx(0.02 / 80)
    assert pace_of(0, [metrics()]).eval_s == pytest.approx(0.01 / 3)
    assert pace_of(0.2, [metrics(), metrics(own=3.2)]).own_s == pytest.approx(0.015)
    assert pace_of(0.2, []) is None


def test_the_closest_likeness_counts_then_the_nearer_device(plan):
    student, kd = (item.trial for item in plan.students if item.label.seed == 0)
    warmer = kd.model_copy(update={"objective": {**kd.objective, "kd": {**kd.objective["kd"], "temperature": 9.0}}})
    heavier = kd.model_copy(update={"objective": {**kd.objective, "kd": {**kd.objective["kd"], "weight": 9.0}}})
    like = {
        name: kinds(trial.model_dump(mode="json"))
        for name, trial in (("student", student), ("kd", kd), ("warmer", warmer), ("heavier", heavier))
    }
    assert like["heavier"] == like["kd"]
    paces = Paces()
    paces.add("a", like["student"], wider("CPU, 2 threads"), PACE)
    near = paces.of(like["kd"], wider(CPU))
    assert (near.trials, near.exact) == ({"a"}, False)
    paces.add("b", like["warmer"], wider("CPU, 2 threads"), PACE)
    assert paces.of(like["kd"], wider(CPU)).trials == {"b"}
    paces.add("c", like["kd"], wider("CPU, 2 threads"), PACE)
    paces.add("d", like["kd"], wider(CPU), PACE)
    assert paces.of(like["kd"], wider(CPU)) == (PACE, {"d"}, True)
    assert paces.of(like["kd"], wider("NVIDIA H100")) is None


def test_results_are_read_once(plan, layout):
    trial = plan.students[0].trial
    folder = keep(layout, trial)
    first = earlier(layout)
    assert first[trial.key].metrics == {names.BEST_VAL_TOP1: 71.5}
    stamp = folder.result.stat().st_mtime_ns
    folder.result.write_text("not read again", encoding="utf-8")
    os.utime(folder.result, ns=(stamp, stamp))
    assert earlier(layout) == first
    os.utime(folder.result, ns=(stamp + 1, stamp + 1))
    assert earlier(layout) == {}  # changed, hence read, and damaged
    keep(layout, trial, status="diverged")
    assert earlier(layout, [trial.key, "nowhere"])[trial.key].status == "diverged"


def test_a_damaged_cache_is_made_anew(plan, layout):
    trial = plan.students[0].trial
    keep(layout, trial)
    first = earlier(layout)
    (layout.cache / "results.json").write_text('{"a": 1', encoding="utf-8")
    assert earlier(layout) == first
    assert json.loads((layout.cache / "results.json").read_text(encoding="utf-8")).keys() == {trial.key}


def test_slots_of_a_machine(sweep_file):
    def slots(there, cpu=1, **resources):
        return there.slots(make(load(sweep_file(resources=resources))).spec.resources, cpu)

    assert slots(Machine(8), cpu=3) == 2
    assert slots(Machine(2), cpu=64) == 1
    assert slots(Machine(8, ("H100",))) == 1
    assert slots(Machine(8, ("H100",)), gpu=0.25) == 4
    assert slots(Machine(2, ("H100",)), gpu=0.25) == 2
    assert slots(Machine(8, ("H100",)), gpu=0) == 8
    assert slots(Machine(8, ("H100",) * 4), gpus_per_trial=2) == 2


def test_teachers_and_students_are_estimated_by_their_own_kind(plan, layout):
    """Two slots: the teacher alone, then two cohorts (one a seed) of two students at the same time."""
    teacher, students = plan.teachers[0].trial, [item.trial for item in plan.students]
    other = students[0].model_copy(update={"seed": 7})
    keep(layout, teacher.model_copy(update={"seed": 7}), own=16.0)
    keep(layout, other, own=1.6)
    keep(layout, students[2].model_copy(update={"seed": 7}), own=1.6, device="CPU, 2 threads")
    found = of_plan(plan, plan.pending(layout), layout, measured(layout), Machine(2))
    test = 2 * TEST_IMAGES * 0.02 / 40
    epochs_t = 2 * (16.0 + 0.4 + 0.02) + test
    epochs_s = 2 * (2 * (1.6 + 0.02) + 0.4) + 2 * test
    assert found.seconds == pytest.approx(epochs_t + epochs_s)
    assert (found.known, found.unknown, len(found.basis)) == (5, 0, 3)


def shown(plan, layout):
    console = Console(width=200, file=StringIO())
    show_plan(plan, layout, console)
    return console.file.getvalue()


def test_the_plan_says_what_its_estimate_rests_on(plan, layout):
    assert "No estimate of the time: nothing like it has been trained here." in shown(plan, layout)
    keep(layout, plan.students[0].trial)
    assert "from 1 earlier trial, some of them the nearest there are" in shown(plan, layout)
    assert "1 trials are like none" in shown(plan, layout)  # the teacher


def test_the_plan_says_how_trials_ended(plan, layout):
    teacher, student = plan.teachers[0].trial, plan.students[0].trial
    keep(layout, student, status="diverged")
    failure = TrialResult(key=teacher.key, status="failed", started=0.0, ended=1.0, reason="OSError: gone")
    write_text(layout.trial(teacher.key).failed, failure.model_dump_json())
    rows = {
        line.split()[-2 if "waits" not in line else -5]: line
        for line in shown(plan, layout).splitlines()
        if " · " in line
    }
    assert rows[teacher.key].rstrip().endswith("failed")
    assert rows[student.key].rstrip().endswith("diverged")
    assert sum(line.rstrip().endswith("waits for its teacher") for line in rows.values()) == 3


def last_line(plan, layout):
    [line] = [line for line in shown(plan, layout).splitlines() if " to train, " in line]
    return line.strip()


def fail(layout, trial):
    failure = TrialResult(key=trial.key, status="failed", started=0.0, ended=1.0, reason="OSError: gone")
    write_text(layout.trial(trial.key).failed, failure.model_dump_json())


def test_what_diverged_is_not_done_and_what_waits_for_it_is_not_to_be_trained(plan, layout):
    keep(layout, plan.teachers[0].trial, status="diverged")
    expected = "5 trials: 1 teacher, 4 students; 0 done, 1 diverged, 4 waiting, 0 to train, 0 epochs in all."
    assert last_line(plan, layout) == expected
    assert "About" not in shown(plan, layout)


def test_what_failed_is_not_to_be_trained(plan, layout):
    keep(layout, plan.teachers[0].trial)
    for item in plan.students[:2]:
        fail(layout, item.trial)
    expected = "5 trials: 1 teacher, 4 students; 1 done, 2 failed, 2 to train, 4 epochs in all."
    assert last_line(plan, layout) == expected


def test_a_begun_trial_is_shown_with_its_last_epoch(plan, layout):
    teacher = plan.teachers[0].trial
    write_text(layout.trial(teacher.key).checkpoint, "")
    assert "begun\n" in shown(plan, layout).replace(" \n", "\n")
    sink = JsonlSink(journal_file(layout, plan.info.name))
    sink.epoch(EpochRecord(key=teacher.key, epoch=1, epochs=2, metrics={}, time=0.0))
    assert "begun, epoch 1/2" in shown(plan, layout)


def test_a_sweep_without_a_question_has_no_colon(sweep_file, layout):
    assert shown(make(load(sweep_file())), layout).startswith("tiny: Does it run?")
    assert shown(make(load(sweep_file(question=""))), layout).splitlines()[0].rstrip() == "tiny"


def test_of_a_grid_search_whose_trials_are_all_done_no_time_is_told(sweep_file, layout):
    plan = make(load(sweep_file(search={"kind": "grid", "scheduler": "asha"}, seeds=[0])))
    assert "No estimate of the time" in shown(plan, layout)
    for trial in (*plan.trials.values(), *(t.trial for s in plan.studies for c in plan.known(s) for t in c.planned)):
        keep(layout, trial)
    assert "No estimate of the time" not in shown(plan, layout)
    assert "A worker without progress" not in shown(plan, layout)


def test_of_an_optuna_search_random_configurations_stand_in_also_where_some_do_not_go_together(sweep_file, layout):
    """With seed 6 the first draw is a batch of 2 in 16 parts."""
    space = {"train.batch_size": {"choice": [2, 64]}, "train.accumulate": {"choice": [1, 16]}}
    search = {"kind": "optuna", "samples": 6, "seed": 6, "space": space, "final": {"seeds": 2}}
    plan = make(load(sweep_file(search=search, methods={"kd": {"kd": 1}}, seeds=[0])))
    with pytest.raises(ConfigError, match="below 2 images"):
        plan.candidate(plan.studies[0], 0, draw(plan.studies[0], 0, 6))
    assert [len(trials) for trials in stages_of(plan, plan.pending(layout), layout)] == [1, 0, 4, 1, 2]


@pytest.mark.parametrize(
    ("budget", "left"), [({}, ["kd", "kd", "student"]), ({"budget": {"trials": 3}}, ["kd", "student"])]
)
def test_what_a_search_has_stopped_is_not_left_and_its_budget_goes_round(sweep_file, layout, budget, left):
    space = {"methods.kd.kd.weight": {"uniform": [1, 2]}}
    search = {"kind": "random", "space": space, "samples": 3, "scheduler": "asha", **budget}
    plan = make(load(sweep_file(search=search, methods={"kd": {"kd": 1}, "student": {"ce": 1}}, seeds=[0])))
    kd = plan.studies[0]
    (first, *_), log = plan.known(kd), Log(layout, plan.info.key)
    log.append(Begun(study=kd.title, number=first.number, values=first.values))
    assert len(stages_of(plan, [], layout)[2]) == len(left) + 1, "it has begun"
    log.append(Ending(study=kd.title, number=first.number, status="pruned", reports=()))
    found = [next(iter(set(trial.objective) - {"ce"}), "student") for trial in stages_of(plan, [], layout)[2]]
    assert sorted(found) == left


def test_a_plan_counts_no_students_that_its_search_has_not_drawn(sweep_file, layout):
    space = {"methods.kd.kd.weight": {"uniform": [1, 2]}}
    plan = make(load(sweep_file(search={"kind": "random", "space": space, "samples": 3}, methods={"kd": {"kd": 1}})))
    console = Console(width=200, file=StringIO())
    show_plan(plan, layout, console)
    assert "1 trial before the search: 1 teacher; 0 done, 1 to train, 2 epochs." in console.file.getvalue()
    assert "Search: 0 configurations begun, at most 3 to come; 0 of 1 study over." in console.file.getvalue()


SEARCHED = {
    "kind": "random",
    "space": {"methods.kd.kd.weight": {"choice": [1, 2]}},
    "samples": 2,
    "final": {"seeds": 3},
}


def test_a_plan_tells_what_comes_after_its_search(sweep_file, layout):
    plan = make(load(sweep_file(search=SEARCHED, seeds=[0])))
    epochs = plan.spec.train.epochs
    text = shown(plan, layout)
    assert f"After it: at most 1 teacher and 6 students to train, {7 * epochs} epochs." in text
    assert "epochs in all" not in text
    assert "After it" not in shown(make(load(sweep_file(search={**SEARCHED, "final": None}, seeds=[0]))), layout)


def over(plan, layout):
    """Have a search ended: of each study the last configuration was the best."""
    contest = Contest(plan, layout, Mailbox())
    while (candidate := contest.next()) is not None:
        for item in candidate.planned:
            keep(layout, item.trial)
        value = 50.0 + candidate.number
        contest.judge(id_of(candidate), Report(plan.spec.train.epochs, value, value, 0.1))
        contest.end(id_of(candidate), "finished", "", {})
    contest.conclude()


def test_a_plan_lists_the_keys_of_winners_and_of_what_is_trained_after_the_search(sweep_file, layout):
    plan = make(load(sweep_file(search=SEARCHED, seeds=[0])))
    keep(layout, plan.teachers[0].trial)
    over(plan, layout)
    tried = Tried(plan, layout)
    final = tried.final
    keep(layout, final.teachers[0].trial)
    keep(layout, final.students[0].trial)
    text = shown(plan, layout)
    lines = {key: line for line in text.splitlines() for key in tried.whole.trials if key in line.split()}
    won = [winner.candidate.planned[0].trial.key for winner in winners(tried.standings, layout).values()]
    assert set(lines) == {plan.teachers[0].trial.key, *won, *final.trials}
    assert all(lines[key].rstrip().endswith("done, wins") for key in won)
    assert lines[final.students[0].trial.key].rstrip().endswith("done")
    assert lines[final.students[1].trial.key].rstrip().endswith("to do")
    assert f"After it: 0 teachers and 5 students to train, {5 * plan.spec.train.epochs} epochs." in text


def test_a_plan_says_that_what_its_search_will_try_is_done_already(sweep_file, layout):
    plan = make(load(sweep_file(search={**SEARCHED, "final": None}, seeds=[0])))
    text = "All trials of the configurations to come are done already: the search takes next to no time."
    for trial in (*plan.trials.values(), *(t.trial for s in plan.studies for c in plan.known(s) for t in c.planned)):
        assert text not in shown(plan, layout)
        keep(layout, trial)
    assert "at most 3 to come" in shown(plan, layout)
    assert text in shown(plan, layout)
    over(plan, layout)
    assert text not in shown(plan, layout)


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_space_with_fewer_configurations_than_samples_is_said(sweep_file, layout, kind):
    """Also in the notes, which say how many there are."""
    plan = make(load(sweep_file(search={**SEARCHED, "kind": kind, "samples": 9}, seeds=[0])))
    text = " ".join(shown(plan, layout).split())
    assert "! search.samples: 9 are asked for, resnet8 ← resnet14 · kd has 2 different configurations." in text
    assert "at most 1 or 2 configurations each" in text
    assert "at most 3 to come" in text
    whole = {"methods.kd.kd.weight": {"int": [1, 9]}}
    assert make(load(sweep_file(search={**SEARCHED, "kind": kind, "samples": 9, "space": whole}))).warnings == ()
