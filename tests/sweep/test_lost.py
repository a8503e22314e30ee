"""A worker that is lost while it is handed from one cohort to the next, with real Ray.

Tune gives up on the next one then, at the first loss; to the user it is a loss like any other.
"""

import os

import pytest

from otkd.core.records import TrialResult
from otkd.sweep.live import Progress
from otkd.sweep.plan import make
from otkd.sweep.run import Broadcast, execute, outcome
from otkd.sweep.runner import Mailbox
from otkd.sweep.spec import load
from otkd.sweep.tried import Tried
from otkd.sweep.tune import RayRunner
from otkd.train import Environment

pytestmark = pytest.mark.long


def dying(trainable, mark, times):
    """One whose worker is killed when it is to serve another cohort, so many times in all."""

    class Dying(trainable):
        def reset(self, *words, **options):
            if not mark.exists() or mark.stat().st_size < times:
                with mark.open("ab") as file:
                    file.write(b".")
                os.kill(os.getpid(), 9)
            return super().reset(*words, **options)

    return Dying


def deadly(trainable, trial):
    """One that ends its worker whenever it is to serve this trial."""

    class Deadly(trainable):
        def reset_config(self, new_config):
            if new_config["cohort"] == [trial.model_dump_json()]:
                os.kill(os.getpid(), 9)
            return super().reset_config(new_config)

    return Deadly


def fatal(trainable, mark):
    """One that ends its worker in its first epoch."""

    class Fatal(trainable):
        def step(self):
            with mark.open("ab") as file:
                file.write(b".")
            os.kill(os.getpid(), 9)

    return Fatal


def let_die(monkeypatch, mark, times):
    fit = RayRunner.fit
    monkeypatch.setattr(RayRunner, "fit", lambda self, what, *w, **o: fit(self, dying(what, mark, times), *w, **o))


@pytest.mark.parametrize(
    "search",
    [{}, {"search": {"kind": "random", "space": {"methods.kd.kd.weight": {"loguniform": [0.1, 10]}}, "samples": 3}}],
    ids=["grid", "search"],
)
def test_a_worker_lost_on_the_way_to_the_next_cohort_costs_no_trial(
    sweep_file, layout, node, tmp_path, monkeypatch, search
):
    mark = tmp_path / "killed"
    let_die(monkeypatch, mark, 1)
    plan = make(load(sweep_file(seeds=[0], resources={"cpu": 1, "cohort": 1, "gpu": 0}, **search)))
    told, environment = Mailbox(), Environment(layout=layout, device="cpu", heed_stop=True)
    with RayRunner(environment, plan.spec.resources, node.address) as runner:
        progress = Progress(plan)
        execute(plan, runner, Broadcast(progress, told), progress, layout)
    assert mark.stat().st_size == 1
    assert outcome(plan, layout).open == 0
    ends = [text for kind, text in told.take() if kind == "finish"]
    assert len(ends) == len(Tried(plan, layout).whole.trials)
    assert {TrialResult.model_validate_json(text).status for text in ends} == {"finished"}


def test_a_cohort_that_always_ends_its_worker_fails(sweep_file, layout, node, monkeypatch):
    """Rather than being tried for ever; the others go on."""
    plan = make(load(sweep_file(seeds=[0], resources={"cpu": 1, "cohort": 1, "gpu": 0, "retries": 1})))
    trials = [plan.teachers[0].trial.model_copy(update={"seed": seed}) for seed in range(3)]
    fit = RayRunner.fit
    monkeypatch.setattr(RayRunner, "fit", lambda self, what, *w, **o: fit(self, deadly(what, trials[1]), *w, **o))
    told = Mailbox()
    with RayRunner(Environment(layout=layout, device="cpu"), plan.spec.resources, node.address) as runner:
        runner.run([[trial] for trial in trials], 1, told)
    results = [TrialResult.model_validate_json(text) for kind, text in told.take() if kind == "finish"]
    assert {result.key: result.status for result in results} == {
        trials[0].key: "finished",
        trials[1].key: "failed",
        trials[2].key: "finished",
    }
    assert len(results) == 3


def test_a_trial_that_always_ends_its_worker_is_tried_as_often_as_the_file_says(
    sweep_file, layout, node, tmp_path, monkeypatch
):
    mark, fit = tmp_path / "killed", RayRunner.fit
    monkeypatch.setattr(RayRunner, "fit", lambda self, what, *w, **o: fit(self, fatal(what, mark), *w, **o))
    resources = {"cpu": 1, "cohort": 1, "gpu": 0, "retries": 1}
    plan = make(load(sweep_file(seeds=[0], resources=resources)))
    progress = Progress(plan)
    with RayRunner(Environment(layout=layout, device="cpu"), plan.spec.resources, node.address) as runner:
        execute(plan, runner, Broadcast(progress, Mailbox()), progress, layout)
    assert mark.stat().st_size == 2
    assert [end.split(": ")[1] for end in outcome(plan, layout).failed] == ["WorkerLostError"]
