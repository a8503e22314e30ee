"""Weights from outside: every form they come in, and every way in which they do not fit."""

import argparse
import shutil

import pytest
import torch
from safetensors.torch import save_file

from otkd.core import plugins
from otkd.core.errors import CheckpointError
from otkd.core.layout import Layout
from otkd.core.trial import Model, Train, Trial
from otkd.core.weights import Given, digest
from otkd.models.factory import create
from otkd.sweep.runner import Mailbox
from otkd.train import fit
from otkd.train.weights import place, read, take_in

from .conftest import DATA, TEACHER

CARD = plugins.head("data", "digits").CARD


@pytest.fixture
def state():
    return create("resnet8", classes=10, channels=1, seed=5).state_dict()


def given(path, network="resnet8", begins=False):
    return Given(network, str(path), digest(str(path)), begins)


def taken(layout, item):
    take_in(layout, [item], CARD)
    return torch.load(place(layout, Model(name=item.network, weights=item.digest), CARD), weights_only=True)


WRITERS = {
    "plain": lambda state, path: torch.save(state, path),
    "repdistiller": lambda state, path: torch.save({"epoch": 240, "model": state, "accuracy": torch.tensor(7.0)}, path),
    "parallel": lambda state, path: torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path),
    "nested": lambda state, path: torch.save({"net": {"state_dict": state}}, path),
    "compiled": lambda state, path: torch.save({f"_orig_mod.{k}": v for k, v in state.items()}, path),
    "compiled parallel": lambda state, path: torch.save({f"_orig_mod.module.{k}": v for k, v in state.items()}, path),
    "uncounted": lambda state, path: torch.save({k: v for k, v in state.items() if "num_batches" not in k}, path),
    "safetensors": save_file,
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_is_read(tmp_path, state, form):
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    WRITERS[form](state, path)
    kept = taken(Layout(tmp_path / "runs"), given(path))
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items() if name in kept)
    assert {name for name in state if name not in kept} == (
        {name for name in state if "num_batches" in name} if form == "uncounted" else set()
    )


def test_the_digest_is_the_contents(tmp_path, state):
    for name in ("one.pth", "two.pth"):
        torch.save(state, tmp_path / name)
    shutil.copy(tmp_path / "one.pth", tmp_path / "copy.pth")
    assert digest(str(tmp_path / "one.pth")) == digest(str(tmp_path / "copy.pth"))
    torch.save({**state, "fc.bias": state["fc.bias"] + 1}, tmp_path / "two.pth")
    assert digest(str(tmp_path / "one.pth")) != digest(str(tmp_path / "two.pth"))
    assert digest("IMAGENET1K_V1") == "named:IMAGENET1K_V1"


def test_what_holds_more_than_tensors_is_refused(tmp_path, state):
    torch.save({"model": state, "opt": argparse.Namespace(lr=1)}, tmp_path / "last.pth")
    with pytest.raises(CheckpointError, match=r"last\.pth holds more than tensors \(argparse\.Namespace\).*docs/che"):
        read(tmp_path / "last.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a file of torch", "cannot be read as weights"),
        ({"epoch": 3, "lr": 0.1}, "no state dict in it, neither at the top nor under model, .*; it has epoch, lr"),
        ([1, 2], "no state dict in it, .*; it is a list"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_a_mismatch_names_what_and_whose_it_is(tmp_path):
    torch.save(create("resnet14", classes=17, channels=1, seed=0).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        take_in(Layout(tmp_path), [given(tmp_path / "other.pth")], CARD)
    text = str(caught.value)
    assert "other.pth does not fit resnet8: " in text
    assert "36 unexpected: layer1.1.conv1.weight, " in text
    assert " and 31 more" in text
    assert "2 of another shape: fc.weight (17, 64) for (10, 64), fc.bias (17,) for (10,)" in text
    assert "These are the shapes of resnet14 with 17 classes." in text


def test_weights_for_other_images_are_known(tmp_path):
    torch.save(create("resnet8", classes=100, channels=3, seed=0).state_dict(), tmp_path / "cifar.pth")
    with pytest.raises(CheckpointError, match="shapes of resnet8 with 100 classes, for images of 3 channels"):
        take_in(Layout(tmp_path), [given(tmp_path / "cifar.pth")], CARD)


def test_all_that_is_wrong_is_said_at_once(tmp_path, state):
    torch.save({**state, "stranger": torch.zeros(1)}, tmp_path / "one.pth")
    del state["fc.bias"]
    torch.save(state, tmp_path / "two.pth")
    with pytest.raises(CheckpointError) as caught:
        take_in(Layout(tmp_path), [given(tmp_path / "one.pth"), given(tmp_path / "two.pth")], CARD)
    assert "1 unexpected: stranger" in str(caught.value)
    assert "1 missing: fc.bias. No network of otkd has these shapes." in str(caught.value)


def test_a_student_may_begin_with_the_weights_of_other_classes(tmp_path):
    other = create("resnet8", classes=17, channels=1, seed=0).state_dict()
    torch.save(other, tmp_path / "other.pth")
    kept = taken(Layout(tmp_path), given(tmp_path / "other.pth", begins=True))
    assert set(other) - set(kept) == {"fc.weight", "fc.bias"}


def test_a_teacher_needs_its_classifier_whatever_a_student_has_left(tmp_path):
    torch.save(create("resnet8", classes=17, channels=1, seed=0).state_dict(), tmp_path / "other.pth")
    as_student, as_teacher = (given(tmp_path / "other.pth", begins=begins) for begins in (True, False))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="2 of another shape: fc"):
            take_in(Layout(tmp_path / "both"), [as_student, as_teacher], CARD)
        assert not (tmp_path / "both/weights").exists()
    take_in(Layout(tmp_path / "one"), [as_student], CARD)
    with pytest.raises(CheckpointError, match="2 of another shape: fc"):
        take_in(Layout(tmp_path / "one"), [as_teacher], CARD)


def test_weights_that_are_not_finite_are_refused(tmp_path, state):
    state["fc.weight"][3, 5] = torch.nan
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"broken\.pth: fc\.weight hold numbers that are not finite"):
        take_in(Layout(tmp_path), [given(tmp_path / "broken.pth")], CARD)


def test_a_file_that_holds_itself_is_refused(tmp_path):
    held = {"epoch": 1}
    held["model"] = held
    torch.save(held, tmp_path / "round.pth")
    with pytest.raises(CheckpointError, match="no state dict in it"):
        read(tmp_path / "round.pth")


def test_weights_that_were_never_taken_in_are_named(environment):
    trial = Trial(data=DATA, student=Model(name="resnet8", weights="sha256:12"), objective={}, train=Train(epochs=0))
    (result,) = fit([trial], Mailbox(), environment())
    assert result.status == "failed"
    assert "the weights sha256:12 of resnet8 are not in" in result.reason


def test_given_weights_are_measured_and_teach(environment, cache):
    """The trained teacher's own weights, brought as a file: the same accuracy, without training."""
    trained = cache / "trials" / TEACHER.key / "last.pt"
    place_in = environment()
    item = given(trained, "resnet14")
    take_in(place_in.layout, [item], CARD)
    teacher = Trial(data=DATA, student=Model(name="resnet14", weights=item.digest), objective={}, train=Train(epochs=0))
    mailbox = Mailbox()
    (measured,) = fit([teacher], mailbox, place_in)
    (known,) = fit([TEACHER], mailbox, place_in)
    assert measured.status == "finished"
    assert measured.epochs == ()
    assert measured.metrics["test/last/top1"] == known.metrics["test/last/top1"]
    student = Trial(
        data=DATA,
        student=Model(name="resnet8", weights=_begin(place_in.layout)),
        teacher=teacher,
        objective={"ce": {}, "kd": {}},
        train=Train(epochs=1, batch_size=32),
    )
    (result,) = fit([student], mailbox, place_in)
    assert result.metrics["teacher/test/last/top1"] == known.metrics["test/last/top1"]
    fresh = student.model_copy(update={"student": Model(name="resnet8")})
    (other,) = fit([fresh], mailbox, place_in)
    assert result.epochs[0].metrics["train/loss"] != other.epochs[0].metrics["train/loss"]


def _begin(layout):
    path = layout.root / "begin.pth"
    torch.save(create("resnet8", classes=10, channels=1, seed=77).state_dict(), path)
    item = given(path, "resnet8", begins=True)
    take_in(layout, [item], CARD)
    return item.digest
