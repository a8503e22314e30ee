"""Batches in parts: gradients that are added up, and what becomes of a trial for which there is no memory."""

import logging

import pytest
import torch

from otkd.core import names
from otkd.core.augment import Augment
from otkd.core.output import Batch, Mixed, ModelOutput
from otkd.core.trial import Data, Dot, Sgd, Train
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, fit
from otkd.train.student import Student, cut
from otkd.train.teacher import Teacher

RECIPE = {"epochs": 1, "batch_size": 10, "optimizer": Sgd(name="sgd", lr=0.1), "precision": "fp32"}


@pytest.mark.parametrize(("size", "parts", "sizes"), [(10, 1, [10]), (10, 3, [3, 3, 4]), (5, 4, [2, 3]), (1, 2, [1])])
def test_parts_have_two_images_or_more(size, parts, sizes):
    image = torch.arange(size)
    batch = Batch(image, image + 10, image + 20, Mixed(image + 30, torch.tensor(0.3)))
    out_t = ModelOutput(image + 1, image + 2, (image + 3, image + 4), (image + 5,), ("stem", "stage1"))
    pieces = list(cut(batch, out_t, parts))
    assert [len(part.target) for part, _ in pieces] == sizes
    for offset, values in (
        (0, [part.image for part, _ in pieces]),
        (10, [part.target for part, _ in pieces]),
        (20, [part.indices for part, _ in pieces]),
        (30, [part.mixed.target for part, _ in pieces]),
        (1, [part_t.logits for _, part_t in pieces]),
        (2, [part_t.embedding for _, part_t in pieces]),
        (4, [part_t.stages[0] for _, part_t in pieces]),
        (5, [part_t.preacts[0] for _, part_t in pieces]),
    ):
        assert torch.equal(torch.cat(values), image + offset)
    assert all(part_t.taps == out_t.taps and part.mixed.share == batch.mixed.share for part, part_t in pieces)


def test_gradients_of_parts_add_up_to_one_step(environment, trial):
    """Against the step written out in plain PyTorch: the parts' mean losses, weighed by their sizes."""
    data = Data(name="digits", limit=10, augment=trial().data.augment)
    student = trial({"ce": {}}, teacher=None, train=Train(**RECIPE, accumulate=3), data=data)
    trainer = CohortTrainer([student], Mailbox(), environment())
    batch = next(iter(trainer.train.epoch(1)))
    twin = CohortTrainer([student], Mailbox(), environment("twin")).students[0].model.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 10)):
        logits = twin(batch.image[rows]).logits
        (torch.nn.functional.cross_entropy(logits, batch.target[rows], reduction="sum") / 10).backward()
    optimizer.step()
    trainer._train_epoch(1, 0, trainer.students)
    for mine, theirs in zip(trainer.students[0].model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 6}, "6 parts of a batch of 10 are below 2 images"),
        ({"accumulate": 2, "optimizer": Dot(name="dot")}, "the optimizer dot has two"),
    ],
)
def test_impossible_parts_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Train(**{**RECIPE, **options})


@pytest.fixture
def short_of_memory(monkeypatch):
    """Parts above that many images find no memory, in the second step."""

    def limit(most):
        learn = Student._learn

        def refuse(self, batch, *rest):
            if len(batch.target) > most and self.running.steps == 1 and "attention" in self.trial.objective:
                raise torch.OutOfMemoryError("none left")
            return learn(self, batch, *rest)

        monkeypatch.setattr(Student, "_learn", refuse)

    return limit


def test_without_memory_a_member_begins_anew_in_smaller_parts(environment, trial, short_of_memory, caplog):
    recipe = Train(**{**RECIPE, "epochs": 2})
    short_of_memory(3)
    with caplog.at_level(logging.WARNING, "otkd"):
        halved, whole = fit([trial("at", train=recipe), trial("kd", train=recipe)], Mailbox(), environment())
    assert [line.split("begins anew with ")[1] for line in caplog.messages] == [
        f"each batch in {parts} parts, which batch norm sees one at a time" for parts in (2, 4)
    ]
    assert halved.provenance["accumulate"] == "4 instead of 1, for want of memory"
    assert "accumulate" not in whole.provenance
    asked = trial("at", train=recipe.model_copy(update={"accumulate": 4}))
    [same] = fit([asked], Mailbox(), environment("asked"))
    for name in (names.test("last", "loss"), names.test("last", "top1")):
        assert halved.metrics[name] == same.metrics[name]
    assert [record.epoch for record in halved.epochs] == [1, 2]


def test_dot_cannot_begin_smaller(environment, trial, short_of_memory):
    short_of_memory(3)
    recipe = Train(**{**RECIPE, "optimizer": Dot(name="dot")})
    failed, fine = fit([trial("at", train=recipe), trial("kd", train=recipe)], Mailbox(), environment())
    assert (failed.status, fine.status) == ("failed", "finished")
    assert "neither several processes nor dot take a batch in parts" in failed.reason


def test_a_member_that_cannot_begin_anew_fails_alone(environment, trial, short_of_memory, monkeypatch):
    outputs, asked = Teacher.outputs, []

    def refuse(*args):
        asked.append(1)
        if len(asked) == 2:
            raise torch.OutOfMemoryError("none left either")
        return outputs(*args)

    monkeypatch.setattr(Teacher, "outputs", refuse)
    short_of_memory(3)
    learning = trial({"ce": {}, "attention": {}, "wkd_logit": {"layer": "stage3", "side": 1}}, train=Train(**RECIPE))
    failed, fine = fit([learning, trial("kd", train=Train(**RECIPE))], Mailbox(), environment())
    assert (failed.status, fine.status) == ("failed", "finished")
    assert "none left either" in failed.reason
    assert len(asked) == 2


@pytest.mark.parametrize(("change", "images"), [({"accumulate": 3}, 4), ({}, 20)])
def test_terms_are_told_how_many_images_they_will_see(environment, trial, change, images):
    data = Data(name="digits", limit=150, augment=Augment(pad=1, views=2 if images == 20 else 1))
    made = trial({"ce": {}, "semckd": {}}, train=Train(**{**RECIPE, **change}), data=data)
    trainer = CohortTrainer([made], Mailbox(), environment())
    assert trainer._facts(made, change.get("accumulate", 1)).keywords["batch_size"] == images
    [result] = fit([made], Mailbox(), environment())
    assert result.status == "finished", result.reason


def test_a_trial_that_never_fits_fails_alone(environment, trial, short_of_memory):
    short_of_memory(1)
    recipe = Train(**RECIPE)
    failed, fine = fit([trial("at", train=recipe), trial("kd", train=recipe)], Mailbox(), environment())
    assert (failed.status, fine.status) == ("failed", "finished")
    assert "not enough memory, though each batch was cut into 4 parts already" in failed.reason
