"""A trial's numbers do not depend on company or interruptions: bit for bit on a CPU."""

import pytest
import torch

from otkd.core import names
from otkd.core.errors import TrialError
from otkd.losses.base import LossOutput
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, engine, fit

CLOCKS = ("time/", "memory/", "energy/", names.SYSTEM, names.LATENCY_MS)


def numbers(result):
    """Everything in a result that is not a stopwatch."""
    epochs = [(r.stage, r.epoch, tuple(sorted(_numbers(r.metrics).items()))) for r in result.epochs]
    return result.status, _numbers(result.metrics), epochs


def _numbers(metrics):
    return {k: v for k, v in metrics.items() if not any(clock in k for clock in CLOCKS)}


def weights(environment, trial):
    return torch.load(environment.layout.trial(trial.key).last, weights_only=True)


def same_weights(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def cohort(trial, methods):
    return [trial(method) for method in methods]


def test_alone_in_company_and_interrupted_give_the_same_bits(environment, cohort):
    together = environment("together")
    results = dict(zip([t.key for t in cohort], fit(cohort, Mailbox(), together), strict=True))
    for index, trial in enumerate(cohort):
        alone = environment(f"alone{index}")
        [result] = fit([trial], Mailbox(), alone)
        assert numbers(result) == numbers(results[trial.key])
        assert same_weights(weights(alone, trial), weights(together, trial))
    interrupted = environment("interrupted")
    for _ in range(2):  # stop after each of the first two epochs, forget everything, go on from the files
        trainer = CohortTrainer(cohort, Mailbox(), interrupted)
        trainer.step()
        trainer.save()
    for trial, result in zip(cohort, fit(cohort, Mailbox(), interrupted), strict=True):
        assert numbers(result) == numbers(results[trial.key])
        assert same_weights(weights(interrupted, trial), weights(together, trial))


class Stop(BaseException):
    """Ends training where it stands, as a killed process does."""


@pytest.mark.parametrize("batches", [1, 6, 8])
def test_interrupted_in_the_middle_of_an_epoch_gives_the_same_bits(environment, cohort, monkeypatch, batches):
    whole = environment("whole")
    results = fit(cohort, Mailbox(), whole)
    here, done = environment("here", checkpoint_s=0.0), []
    monkeypatch.setattr(engine, "SAVING", 1e9)
    train = CohortTrainer._train_batch

    def stop(self, *args):
        if len(done) == batches:
            raise Stop
        done.append(1)
        train(self, *args)

    monkeypatch.setattr(CohortTrainer, "_train_batch", stop)
    with pytest.raises(Stop):
        fit(cohort, Mailbox(), here)
    monkeypatch.setattr(CohortTrainer, "_train_batch", train)
    trainer = CohortTrainer(cohort, Mailbox(), here)
    assert {student.place for student in trainer.students} == {(1 + batches // 4, batches % 4)}
    assert all((student.running.spent[0] > 0) == (batches % 4 > 0) for student in trainer.students)
    for trial, result, again in zip(cohort, results, fit(cohort, Mailbox(), here), strict=True):
        assert numbers(again) == numbers(result)
        assert same_weights(weights(here, trial), weights(whole, trial))


def test_killed_after_a_divergence_in_the_last_step_it_diverges_again(environment, trial, monkeypatch):
    here, steps = environment(checkpoint_s=0.0), []
    monkeypatch.setattr(engine, "SAVING", 1e9)

    def late(self, *_):
        steps.append(1)
        return LossOutput(torch.tensor(torch.nan if len(steps) % 4 == 0 else 0.0))

    def killed(*_):
        raise Stop

    monkeypatch.setattr("otkd.losses.kd.Loss.forward", late)
    monkeypatch.setattr(CohortTrainer, "_end", killed)
    small = trial("kd", train=trial("kd").train.model_copy(update={"epochs": 1}))
    with pytest.raises(Stop):
        fit([small], Mailbox(), here)
    monkeypatch.undo()
    monkeypatch.setattr("otkd.losses.kd.Loss.forward", lambda *_: LossOutput(torch.tensor(torch.nan)))
    assert fit([small], Mailbox(), here)[0].status == "diverged"


def test_members_that_stopped_at_different_epochs_meet_again(environment, trial):
    here = environment()
    ahead, behind = trial("kd"), trial("ot")
    lonely = CohortTrainer([ahead], Mailbox(), here)
    lonely.step()
    lonely.save()
    mailbox = Mailbox()
    both = fit([ahead, behind], mailbox, here)
    epochs = [event for event, _ in mailbox.take() if event == "epoch"]
    assert len(epochs) == 2 + 3
    assert numbers(both[1]) == numbers(fit([behind], Mailbox(), environment("other"))[0])
    assert [record.epoch for record in both[0].epochs] == [1, 2, 3]


def test_members_of_a_cohort_start_from_the_same_weights_and_others_do_not(environment, cohort, trial):
    trainer = CohortTrainer(cohort, Mailbox(), environment())
    first, *others = [student.weights() for student in trainer.students]
    assert all(same_weights(first, other) for other in others)
    other_seed = CohortTrainer([trial("kd", seed=1)], Mailbox(), environment("other")).students[0].weights()
    assert not same_weights(first, other_seed)


def test_global_random_state_is_neither_read_nor_moved(environment, trial):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    [one] = fit([trial("kd")], Mailbox(), environment("one"))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    [two] = fit([trial("kd")], Mailbox(), environment("two"))
    assert numbers(one) == numbers(two)


def test_a_finished_trial_is_not_trained_again(environment, trial):
    here = environment()
    fit([trial("kd")], Mailbox(), here)
    mailbox = Mailbox()
    [again] = fit([trial("kd")], mailbox, here)
    assert mailbox.take() == []
    assert again.status == "finished"


def test_what_is_no_cohort_is_refused(environment, trial):
    with pytest.raises(TrialError, match="nothing but their objective"):
        fit([trial("kd"), trial("kd", seed=1)], Mailbox(), environment())


def test_the_teacher_gets_no_gradient_and_learns_nothing_from_the_data(environment, cohort):
    trainer = CohortTrainer(cohort, Mailbox(), environment())
    before = {name: tensor.clone() for name, tensor in trainer.teacher.model.state_dict().items()}
    trainer.step()
    assert all(parameter.grad is None for parameter in trainer.teacher.model.parameters())
    assert same_weights(before, trainer.teacher.model.state_dict())
    assert not trainer.teacher.model.training
