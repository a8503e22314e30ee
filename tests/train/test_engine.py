import json
import logging
import os
import re
import resource
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from otkd.core import names
from otkd.core.errors import CheckpointError, OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.core.records import Pictures
from otkd.core.trial import Constant, Data, Sgd, Train
from otkd.losses.base import LossOutput
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, engine, fit
from otkd.train.checkpoint import load_weights, save_weights
from otkd.train.device import pick
from otkd.train.pulse import Stopped
from otkd.train.student import Student
from otkd.train.teacher import Teacher

FINAL = {
    names.test("last", "top1"),
    names.test("last", "top5"),
    names.test("best", "top1"),
    names.test("last", "agreement"),
    names.PARAMS,
    names.MADDS,
    names.BYTES,
    names.LATENCY_MS,
    "teacher/test/last/top1",
    "teacher/model/params",
}
EPOCH = {
    "train/loss",
    "train/ce/raw",
    "train/kd/raw",
    "train/kd/weighted",
    "train/top1",
    "train/top5",
    "val/loss",
    "val/top1",
    "val/top5",
    "val/agreement",
    names.IMAGES_PER_S,
    names.EPOCH_S,
    names.PEAK_MIB,
}


def test_everything_promised_is_recorded(environment, trial):
    mailbox = Mailbox()
    [result] = fit([trial("kd")], mailbox, environment())
    assert set(result.metrics) >= FINAL
    assert len(result.epochs) == 3
    assert all(set(record.metrics) >= EPOCH for record in result.epochs)
    first = result.epochs[0].metrics
    assert first["train/kd/weighted"] == pytest.approx(0.9 * first["train/kd/raw"])
    weighted = first["train/ce/weighted"] + first["train/kd/weighted"]
    assert first["train/loss"] == pytest.approx(weighted, rel=1e-5)
    assert [kind for kind, _ in mailbox.take()] == ["start", "epoch", "epoch", "epoch", "finish"]
    assert {"commit", "dirty", "torch", "device", "host", "precision"} <= set(result.provenance)


def test_the_best_on_validation_is_the_first_highest(environment, trial):
    [result] = fit([trial("kd")], Mailbox(), environment())
    top1 = [record.metrics["val/top1"] for record in result.epochs]
    assert result.metrics[names.BEST_VAL_TOP1] == max(top1)
    assert result.metrics[names.BEST_EPOCH] == top1.index(max(top1)) + 1


def test_without_a_validation_split_there_is_no_best(environment, trial):
    data = Data(name="digits", val=0, limit=100, augment=trial().data.augment)
    [result] = fit([trial({"ce": {}}, teacher=None, data=data)], Mailbox(), environment())
    assert not any(name.startswith(("test/best", "val/")) for name in result.metrics)
    assert "val/top1" not in result.epochs[0].metrics


def test_a_diverging_member_stops_and_the_others_go_on(environment, trial):
    wild, calm = trial({"ce": {"weight": 1e30}, "kd": {}}), trial("kd")
    here = environment()
    first, second = fit([wild, calm], Mailbox(), here)
    assert first.status == "diverged"
    assert re.search("train epoch 1, by step [0-9]+; the", first.reason), "a CPU looks at every step"
    assert "; the student's stage1, stage2" in first.reason
    assert second.status == "finished"
    assert here.layout.trial(wild.key).done
    alone = fit([calm], Mailbox(), environment("alone"))[0]
    assert alone.metrics[names.test("last", "top1")] == second.metrics[names.test("last", "top1")]


def test_a_failing_member_stops_alone_and_is_tried_again(environment, trial, monkeypatch):
    here = environment()
    broken, sound = trial("at"), trial("kd")
    step = Student.train_step

    def fail(self, *args):
        if self.trial.key == broken.key and self.tick == 2:
            raise RuntimeError("no memory")
        step(self, *args)

    monkeypatch.setattr(Student, "train_step", fail)
    first, second = fit([broken, sound], Mailbox(), here)
    assert (first.status, second.status) == ("failed", "finished")
    assert "no memory" in first.reason
    assert not here.layout.trial(broken.key).done
    assert "in fail" in here.layout.trial(broken.key).error.read_text()
    monkeypatch.undo()
    assert fit([broken], Mailbox(), here)[0].status == "finished"


def test_a_member_that_cannot_be_built_fails_alone(environment, trial, monkeypatch):
    def refuse(*_):
        raise ValueError("these shapes do not fit")

    monkeypatch.setattr("otkd.losses.attention.Loss.__init__", refuse)
    first, second = fit([trial("at"), trial("kd")], Mailbox(), environment())
    assert (first.status, second.status) == ("failed", "finished")
    assert "these shapes do not fit" in first.reason


def test_an_unknown_device_is_refused():
    with pytest.raises(OtkdError, match="there is no device 'abacus' here"):
        pick("abacus")


def test_two_stage_fitnets_trains_the_hint_first(environment, trial):
    staged = trial({"ce": {}, "fitnet": {"stages": {"epochs": 2, "lr": 0.01}}})
    here = environment()
    [result] = fit([staged], Mailbox(), here)
    assert [(r.stage, r.epoch) for r in result.epochs] == [("hint", 1), ("hint", 2), *(("train", e) for e in (1, 2, 3))]
    hint, main = result.epochs[0].metrics, result.epochs[-1].metrics
    assert hint["time/epoch_s"] > hint["time/own_s"] + hint["time/data_s"]
    assert main["time/epoch_s"] == main["time/own_s"] + main["time/data_s"]  # the teacher is not asked any more
    assert "train/fitnet/raw" in hint
    assert "train/ce/raw" not in hint
    assert "train/fitnet/raw" not in main
    assert hint["lr"] == 0.01
    interrupted = environment("interrupted")
    for _ in range(3):
        trainer = CohortTrainer([staged, trial("kd")], Mailbox(), interrupted)
        trainer.step()
        trainer.save()
    again, _ = fit([staged, trial("kd")], Mailbox(), interrupted)
    assert again.metrics[names.test("last", "loss")] == result.metrics[names.test("last", "loss")]


def test_a_checkpoint_cut_off_falls_back_to_the_one_before_and_says_so(environment, trial, caplog):
    here, undisturbed = environment(), environment("undisturbed")
    for _ in range(2):
        trainer = CohortTrainer([trial("kd")], Mailbox(), here)
        trainer.step()
        trainer.save()
    newest = here.layout.trial(trial("kd").key).checkpoint
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "otkd"):
        resumed = CohortTrainer([trial("kd")], Mailbox(), here)
    assert "checkpoint.pt cannot be read" in caplog.text
    assert resumed.students[0].tick == 2
    [result] = fit([trial("kd")], Mailbox(), here)
    [whole] = fit([trial("kd")], Mailbox(), undisturbed)
    assert result.metrics[names.test("last", "loss")] == whole.metrics[names.test("last", "loss")]


def test_a_full_disk_stops_training_with_one_message_and_keeps_the_checkpoint(environment, trial):
    here = environment()
    trainer = CohortTrainer([trial("kd")], Mailbox(), here)
    trainer.step()
    trainer.save()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100_000, limits[1])
    )  # the system refuses larger files, as a full disk does
    try:
        with pytest.raises(StorageError, match=r"cannot write .*\.pt: File too large\. Free some space"):
            fit([trial("kd")], Mailbox(), here)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert CohortTrainer([trial("kd")], Mailbox(), here).students[0].tick == 2


def test_an_untrained_teacher_is_named(environment, trial):
    other = trial().teacher.model_copy(update={"seed": 9})
    with pytest.raises(CheckpointError, match=r"the teacher resnet14 .* has not been trained"):
        fit([trial("kd", teacher=other)], Mailbox(), environment())


def test_weights_that_are_not_whole_say_what_to_delete(tmp_path):
    folder = Layout(tmp_path).trial("key")
    save_weights(folder.last, {"weight": torch.zeros(1000)})
    os.truncate(folder.last, 2000)
    with pytest.raises(CheckpointError, match=rf"delete {folder.last}, and the next `otkd sweep` makes it again"):
        load_weights(folder.last)
    folder.result.touch()
    with pytest.raises(CheckpointError, match=rf"delete {folder.path}, and the next `otkd sweep`") as torn:
        load_weights(folder.last)
    assert " …); " in str(torn.value), "cut between words"


def test_checkpoints_are_written_by_the_clock_and_gone_in_the_end(environment, trial, monkeypatch):
    saved = []
    monkeypatch.setattr(engine.CohortTrainer, "save", lambda self: saved.append(1))
    fit([trial("kd")], Mailbox(), environment("rarely", checkpoint_s=1e6))
    assert saved == []
    fit([trial("kd")], Mailbox(), environment("often", checkpoint_s=0))
    assert len(saved) == 3 * (4 + 1), "after each of four batches, and when the epoch is closed"
    monkeypatch.undo()
    here = environment("real", checkpoint_s=0)
    fit([trial("kd")], Mailbox(), here)
    folder = here.layout.trial(trial("kd").key)
    assert not folder.checkpoint.exists()
    assert json.loads(folder.trial.read_text())["student"]["name"] == "resnet8"


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_clipping_bounds_the_update(environment, trial, clip):
    recipe = Train(
        epochs=1, batch_size=75, optimizer=Sgd(name="sgd", lr=1.0, momentum=0, weight_decay=0), clip_norm=clip
    )
    data = Data(name="digits", limit=75, augment=trial().data.augment)
    student = trial({"ce": {}}, teacher=None, train=recipe, data=data)
    trainer = CohortTrainer([student], Mailbox(), environment())
    model = trainer.students[0].model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer._train_epoch(1, 0, trainer.students)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)]).norm().item()
    assert (moved <= 1.01e-3) == (clip is not None)


def test_one_parameter_group_is_updated_as_torch_would(environment, trial):
    """One step of the engine against the same step written out in plain PyTorch."""
    recipe = Train(epochs=1, batch_size=100, optimizer=Sgd(name="sgd", lr=0.1), precision="fp32")
    data = Data(name="digits", limit=100, augment=trial().data.augment)
    trainer = CohortTrainer([trial({"ce": {}}, teacher=None, train=recipe, data=data)], Mailbox(), environment())
    [student] = trainer.students
    batch = next(iter(trainer.train.epoch(1)))
    twin = CohortTrainer([student.trial], Mailbox(), environment("twin")).students[0].model.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    torch.nn.functional.cross_entropy(twin(batch.image).logits, batch.target).backward()
    optimizer.step()
    trainer._train_epoch(1, 0, [student])
    for mine, theirs in zip(student.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_loss_alone_that_is_not_finite_is_told_apart(environment, trial, monkeypatch):
    monkeypatch.setattr("otkd.losses.kd.Loss.forward", lambda self, *_: LossOutput(torch.tensor(torch.nan)))
    (result,) = fit([trial("kd")], Mailbox(), environment())
    assert result.status == "diverged"
    assert result.reason.endswith("by step 1; all outputs of both networks are finite")


@pytest.fixture
def observing(monkeypatch):
    """Makes `kd` and `attention` look at the teacher first; what each saw, and how often the teacher was asked."""
    seen, asked = [], []

    def observe(self, batch, out_t):
        seen.append((type(self).__module__.split(".")[-1], batch.indices))
        assert len(batch.indices) == len(out_t.logits)
        time.sleep(0.01)

    outputs = Teacher.outputs
    monkeypatch.setattr(Teacher, "outputs", lambda *args: asked.append(1) or outputs(*args))
    for name in ("kd", "attention"):
        monkeypatch.setattr(f"otkd.losses.{name}.Loss.observe", observe)
        monkeypatch.setattr(f"otkd.losses.{name}.Loss.prepare", lambda self: seen.append(("prepare", None)))
        monkeypatch.setattr(f"otkd.losses.{name}.Loss.needs_preparation", True)
    return SimpleNamespace(seen=seen, asked=asked)


def test_terms_see_all_training_images_once_before_training_in_one_pass(environment, trial, observing, monkeypatch):
    monkeypatch.setattr("otkd.train.teacher.EVAL_BATCH", 50)
    here, trials = environment(checkpoint_s=0.0), [trial("kd"), trial("at"), trial("ot")]
    trainer = CohortTrainer(trials, Mailbox(), here)
    assert len(observing.asked) == 1
    assert [name for name, _ in observing.seen] == ["kd", "attention"] * 3 + ["prepare"] * 2, "in lockstep"
    for term in ("kd", "attention"):
        rows = torch.cat([indices for name, indices in observing.seen if name == term])
        assert len(rows) == len(rows.unique()) == 120
    trainer.step()
    results = fit(trials, Mailbox(), here)
    assert len(observing.asked) == 1, "what was learned is in the checkpoint"
    for result, prepared in zip(results, (True, True, False), strict=True):
        prepare_s = result.metrics[names.PREPARE_S]
        assert (prepare_s > 0.03) == prepared  # three batches of 0.01 s each, and the teacher
        epochs_s = sum(record.metrics[names.EPOCH_S] for record in result.epochs)
        assert result.metrics[names.WALL_S] == pytest.approx(prepare_s + epochs_s)


def test_a_term_that_cannot_prepare_fails_alone(environment, trial, observing, monkeypatch):
    def refuse(*_):
        raise ValueError("no such features")

    monkeypatch.setattr("otkd.losses.attention.Loss.observe", refuse)
    first, second = fit([trial("at"), trial("kd")], Mailbox(), environment())
    assert (first.status, second.status) == ("failed", "finished")
    assert "no such features" in first.reason
    assert [name for name, _ in observing.seen] == ["kd", "prepare"]


def test_where_looks_are_rare_a_divergence_is_placed_between_two(environment, trial, monkeypatch):
    """120 images in batches of 10: looks after 5, 10 and 12 steps, as on a GPU."""
    steps = []

    def late(self, *_):
        steps.append(1)
        return LossOutput(torch.tensor(torch.nan if len(steps) >= 11 else 0.0))

    monkeypatch.setattr("otkd.losses.kd.Loss.forward", late)
    small = trial("kd", train=Train(epochs=1, batch_size=10))
    trainer = CohortTrainer([small], Mailbox(), environment())
    trainer.students[0].check_every = 5
    trainer.step()
    reason = trainer.results[small.key].reason
    assert "in train epoch 1, by step 12, within the last 2 steps; " in reason


def test_the_teachers_classifier_is_its_last_layer(environment, trial):
    trainer = CohortTrainer([trial("kd")], Mailbox(), environment())
    facts = trainer.teacher.facts
    weight, bias = facts["classifier_t"], facts["bias_t"]
    assert (weight.shape, bias.shape) == ((10, 64), (10,))
    assert not weight.requires_grad
    assert weight.data_ptr() == trainer.teacher.model.fc.weight.data_ptr()
    trainer.teacher.model.add_module("another", torch.nn.Linear(64, 11))
    assert trainer.teacher.facts["classifier_t"].data_ptr() == weight.data_ptr()
    trainer.teacher.model.fc = torch.nn.Identity()
    assert trainer.teacher.facts["classifier_t"] is None


def test_a_picture_that_cannot_be_made_costs_no_trial(environment, trial, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no memory for a picture")

    monkeypatch.setattr("otkd.losses.transport.Loss.snapshot", fail)
    here = environment()
    with caplog.at_level(logging.WARNING, "otkd"):
        [result] = fit([trial("ot")], Mailbox(), here)
    assert (result.status, result.reason) == ("finished", "")
    assert names.test("best", "top1") in result.metrics
    assert f"{trial('ot').key} keeps no picture: RuntimeError: no memory for a picture" in caplog.text
    folder = here.layout.trial(trial("ot").key)
    assert folder.last.exists()
    assert not folder.snapshots.exists()


@pytest.mark.parametrize(("most", "each"), [(128, 4), (16, 2), (3, 1)])
def test_a_picture_is_of_few_images(environment, trial, monkeypatch, most, each):
    """The trial's batch of 32 is four of each of eight classes, unless that is too many."""
    monkeypatch.setattr(engine, "SNAPSHOT_IMAGES", most)
    trainer = CohortTrainer([trial("ot")], Mailbox(), environment())
    trainer._keep_snapshots(trainer.students[0])
    (kept,) = Pictures.model_validate_json(trainer.students[0].folder.snapshots.read_text()).pictures.values()
    assert kept.classes == tuple(label for label in range(8) for _ in range(each))


def test_the_plan_of_a_fixed_batch_is_kept(environment, trial):
    here = environment()
    both = trial({"ce": {}, "transport": {"solver": {"name": "exact"}, "layer": ["embedding", 1]}}), trial("kd")
    assert [result.reason for result in fit(both, Mailbox(), here)] == ["", ""]
    kept = Pictures.model_validate_json(here.layout.trial(both[0].key).snapshots.read_text()).pictures
    assert sorted(kept) == ["transport-1", "transport-embedding"]
    for picture in kept.values():
        matrix = torch.tensor(picture.matrix)
        assert picture.classes == tuple(label for label in range(8) for _ in range(4))
        torch.testing.assert_close(matrix.sum(1), torch.full((32,), 1 / 32), rtol=1e-4, atol=0)
    assert not here.layout.trial(both[1].key).snapshots.exists()


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, set()), (2, {1}), (3, {1, 2}), (6, {1, 3, 4}), (240, {1, 60, 120, 180})]
)
def test_pictures_are_taken_on_the_way(epochs, expected):
    assert engine.looked_at(epochs) == expected


def test_plans_of_earlier_epochs_are_kept_and_change_nothing(environment, trial, monkeypatch):
    """What is kept after an epoch is what a training that ends there keeps, and the training is as without it."""
    solver = {"name": "sinkhorn", "epsilon": 0.1}
    objective = {"ce": {}, "transport": {"points": "channel", "layer": 1, "solver": solver, "warm_start": True}}
    kept = {}
    for epochs in (1, 4):
        here = environment(str(epochs))
        made = trial(objective, train=Train(epochs=epochs, batch_size=32, schedule=Constant(name="constant")))
        fit([made], Mailbox(), here)
        kept[epochs] = Pictures.model_validate_json(here.layout.trial(made.key).snapshots.read_text())
        weights = torch.load(here.layout.trial(made.key).last, weights_only=True)
    assert kept[1].earlier == ()
    assert [moment.epoch for moment in kept[4].earlier] == [1, 2, 3]
    first, alone, last = (
        torch.tensor(pictures["transport-1"].matrix)
        for pictures in (kept[4].earlier[0].pictures, kept[1].pictures, kept[4].pictures)
    )
    torch.testing.assert_close(first, alone, rtol=6e-3, atol=0)
    assert not torch.allclose(first, last, rtol=6e-3)

    evaluate, asked = CohortTrainer._evaluate, []

    def stopped_once(self, student, batches, *looks):
        asked.append(1)
        if len(asked) == 2:
            raise Stopped
        return evaluate(self, student, batches, *looks)

    here = environment("stopped")
    with monkeypatch.context() as patch:
        patch.setattr(CohortTrainer, "_evaluate", stopped_once)  # in the validation after the second epoch
        trainer = CohortTrainer([made], Mailbox(), here)
        while not trainer.stopped:
            trainer.step()
    fit([made], Mailbox(), here)
    again = Pictures.model_validate_json(here.layout.trial(made.key).snapshots.read_text())
    assert again == kept[4]

    monkeypatch.setattr(engine, "looked_at", lambda epochs: set())
    here = environment("without")
    fit([made], Mailbox(), here)
    without = torch.load(here.layout.trial(made.key).last, weights_only=True)
    assert all(torch.equal(weights[name], without[name]) for name in weights)
