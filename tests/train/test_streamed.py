"""Images that are decoded while they are trained on: interrupted in the middle of an epoch, and unreadable ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from otkd.core import datasets, names
from otkd.core.errors import DataError
from otkd.core.layout import Layout
from otkd.core.trial import Data, Model, Sgd, Train, Trial
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, Environment, fit

from .test_cohort import Stop, numbers

RECIPE = Train(epochs=2, batch_size=8, optimizer=Sgd(name="sgd", lr=0.05))
OPTIONS = {"side": 16, "resize": 18}


@pytest.fixture
def folder(tmp_path):
    """Three classes of images of several sizes, in the layout of class folders."""
    random = np.random.default_rng(0)
    for split, each in (("train", 11), ("test", 5)):
        for label in range(3):
            place = tmp_path / "data" / "pets" / split / f"class{label}"
            place.mkdir(parents=True)
            for index in range(each):
                pixels = random.integers(0, 80, (17 + index, 25, 3)) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    return tmp_path


@pytest.fixture
def trials(folder):
    """A teacher and two of its students."""
    data = datasets.survey(Data(name="folder/pets", options=OPTIONS), folder / "data", folder / "survey")
    teacher = Trial(data=data, student=Model(name="resnet8"), objective={"ce": {}}, train=RECIPE)
    objectives = {"ce": {}, "kd": {}}, {"ce": {}, "transport": {}}
    return [teacher, *(teacher.model_copy(update={"teacher": teacher, "objective": o, "seed": 1}) for o in objectives)]


@pytest.fixture
def environment(folder):
    def build(name, **options):
        return Environment(layout=Layout(folder / name), data_dir=folder / "data", device="cpu", **options)

    return build


def trained(trials, environment):
    teacher, *students = trials
    return [*fit([teacher], Mailbox(), environment), *fit(students, Mailbox(), environment)]


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_in_the_middle_of_an_epoch_goes_on_with_the_next_batch(trials, environment, monkeypatch, workers):
    whole = trained(trials, environment("whole", workers=0))
    here, seen = environment("here", workers=workers), []
    fit(trials[:1], Mailbox(), here)
    train = CohortTrainer._train_batch

    def stop(self, batch, *rest):
        train(self, batch, *rest)
        seen.append(batch.indices)
        if len(seen) == 3:
            self.save()
            raise Stop

    monkeypatch.setattr(CohortTrainer, "_train_batch", stop)
    with pytest.raises(Stop):
        fit(trials[1:], Mailbox(), here)
    results = fit(trials[1:], Mailbox(), here)
    first = torch.cat(seen[:5])  # an epoch of 33 images: 8, 8, 8, 8, and a single one that is left out
    assert [len(part) for part in seen[:4]] == [8, 8, 8, 8]
    assert len(first[:32].unique()) == 32
    for result, expected in zip(results, whole[1:], strict=True):
        assert numbers(result) == numbers(expected)


def test_an_unreadable_test_image_is_found_before_the_first_step(trials, folder, environment):
    (spoilt,) = (folder / "data" / "pets" / "test" / "class1").glob("3.png")
    size = spoilt.stat().st_size
    spoilt.write_bytes(b"x" * size)
    with pytest.raises(DataError, match=r"3\.png"):
        CohortTrainer(trials[:1], Mailbox(), environment("runs"))


def test_as_many_as_allowed_are_left_out_and_told(folder, environment, caplog):
    (spoilt,) = (folder / "data" / "pets" / "train" / "class1").glob("3.png")
    spoilt.write_bytes(b"x" * spoilt.stat().st_size)
    data = datasets.survey(Data(name="folder/pets", options=OPTIONS, skip=1), folder / "data", folder / "survey")
    trial = Trial(data=data, student=Model(name="resnet8"), objective={"ce": {}}, train=RECIPE)
    [result] = fit([trial], Mailbox(), environment("runs", workers=1))
    assert result.status == "finished"
    assert names.test("last", "top1") in result.metrics
    assert "3.png" in caplog.text
