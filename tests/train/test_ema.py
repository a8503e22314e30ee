"""A recipe with a running average of the weights: the average is what is evaluated, selected and kept."""

import pytest
import torch

from otkd.core import names
from otkd.losses.objective import MAIN
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, fit
from otkd.train.evaluate import evaluate
from otkd.train.student import Student


@pytest.fixture
def averaged(trial):
    """Builds a trial whose weights are averaged."""

    def build(method="kd", ema=0.8):
        made = trial(method)
        return made.model_copy(update={"train": made.train.model_copy(update={"ema": ema})})

    return build


@pytest.mark.parametrize("method", ["kd", {"ce": {}, "fitnet": {"stages": {"epochs": 1, "lr": 0.01}}}])
def test_the_average_of_all_steps_is_kept_and_measured(environment, averaged, monkeypatch, method):
    """Against the recursion over copies of the weights after each step of the main stage."""
    followed, step = {}, Student.train_step

    def follow(self, *args):
        step(self, *args)
        if self.position.stage != MAIN:
            return
        now = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for name, tensor in now.items():
            whole = not tensor.is_floating_point() or name not in followed
            followed[name] = tensor if whole else 0.8 * followed[name] + 0.2 * tensor

    monkeypatch.setattr(Student, "train_step", follow)
    here = environment()
    [result] = fit([averaged(method)], Mailbox(), here)
    kept = torch.load(here.layout.trial(result.key).last, weights_only=True)
    assert kept.keys() == followed.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, followed[name], rtol=1e-4, atol=1e-5)
    trainer = CohortTrainer([averaged(ema=0.9)], Mailbox(), here)
    model = trainer.students[0].model
    model.load_state_dict(kept)
    measured = evaluate(model, trainer.test, trainer.dtype, None)
    assert measured["top1"] == result.metrics[names.test("last", "top1")]
    assert measured["loss"] == pytest.approx(result.metrics[names.test("last", "loss")])


def test_the_best_average_is_selected(environment, averaged):
    here = environment()
    [result] = fit([averaged()], Mailbox(), here)
    trainer = CohortTrainer([averaged(ema=0.9)], Mailbox(), here)
    model = trainer.students[0].model
    model.load_state_dict(torch.load(here.layout.trial(result.key).best, weights_only=True))
    assert evaluate(model, trainer.val, trainer.dtype, None)["top1"] == result.metrics[names.BEST_VAL_TOP1]


@pytest.mark.parametrize("method", ["kd", {"ce": {}, "simkd": {}}])
def test_interrupted_gives_the_same_bits(environment, averaged, method):
    [whole] = fit([averaged(method)], Mailbox(), environment("whole"))
    here = environment("here")
    for _ in range(2):
        trainer = CohortTrainer([averaged(method)], Mailbox(), here)
        trainer.step()
        trainer.save()
    [parts] = fit([averaged(method)], Mailbox(), here)
    for name in (names.test("last", "loss"), names.test("best", "loss")):
        assert parts.metrics[name] == whole.metrics[name]
    [plain] = fit(
        [averaged(method).model_copy(update={"train": averaged().train.model_copy(update={"ema": None})})],
        Mailbox(),
        here,
    )
    assert plain.metrics[names.test("last", "loss")] != whole.metrics[names.test("last", "loss")]
