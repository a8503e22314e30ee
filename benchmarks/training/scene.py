"""What all loops of a pair share: images, networks, trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from otkd.core.layout import Layout
from otkd.core.output import Batch, ModelOutput
from otkd.core.records import TrialResult
from otkd.core.trial import Data, Model, Trial
from otkd.data.batches import Batches
from otkd.data.pipeline import Splits, prepare
from otkd.losses.base import Probe
from otkd.losses.objective import Objective
from otkd.models.factory import create
from otkd.train import checkpoint
from otkd.train.device import autocast_dtype
from otkd.train.teacher import facts

Terms = dict[str, dict[str, Any]]

METHODS: dict[str, Terms] = {
    "kd": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}},
    "fitnet": {"ce": {}, "fitnet": {"weight": 100, "layer": 2}},
    "attention": {"ce": {}, "attention": {"weight": 1000}},
    "transport": {"ce": {}, "transport": {"weight": 10}},
}
"""Those that are held against the floor."""
COHORT: dict[str, Terms] = {
    **METHODS,
    "ce": {"ce": {}},
    "kd + attention": {**METHODS["kd"], "attention": {"weight": 1000}},
}
"""The cohort of six."""
BATCH = 64
CLASSES = 100
LR = 1e-9
"""At which random networks stay as they are."""
FOREVER = 10**6


class Place(NamedTuple):
    """Where and in which arithmetic everything is measured."""

    root: Path
    """A `runs/` folder of the benchmark's own."""
    data_dir: Path | None
    device: torch.device
    threads: int
    precision: str


class Networks(NamedTuple):
    """A pair that is ready to train, and its loss."""

    student: nn.Module
    teacher: nn.Module
    objective: Objective

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.student.parameters(), *self.objective.parameters()]


def usual_data(data_dir: Path | None, quick: bool) -> Data:
    """CIFAR-100 where it is, else computed images as many and as large (fewer for a quick look)."""
    if data_dir is not None:
        return Data(name="cifar100")
    train, test = (2_000, 300) if quick else (50_000, 10_000)
    return Data.model_validate(
        {"name": "synthetic", "options": {"classes": CLASSES, "side": 32, "train": train, "test": test}}
        | {"augment": {"pad": 4, "flip": True}}
    )


class Scene:
    """One pair.

    Args:
        data: the images; an epoch takes `steps` batches of them.
        pair: student and teacher.
    """

    def __init__(self, place: Place, data: Data, pair: tuple[str, str], steps: int) -> None:
        self.place, self.pair, self.steps = place, pair, steps
        self.data = data.model_copy(update={"limit": images(steps)})
        self.layout = Layout(place.root)
        self.dtype = autocast_dtype(place.precision, place.device)

    def trial(self, terms: Terms, epochs: int = FOREVER) -> Trial:
        """A student with that objective; the teacher is the same for all."""
        shared = {"data": self.data.model_dump(), "train": recipe(epochs, self.place.precision)}
        teacher = {**shared, "train": recipe(1, self.place.precision), "objective": {"ce": {}}}
        student, name = self.pair
        teacher["student"] = {"name": name}
        return Trial.model_validate({**shared, "student": {"name": student}, "objective": terms, "teacher": teacher})

    @cached_property
    def splits(self) -> Splits:
        return prepare(self.data, data_dir=self.place.data_dir, cache_dir=self.layout.cache)

    @cached_property
    def batches(self) -> Batches:
        """The engine's batches."""
        return Batches(
            self.splits.train,
            self.splits.card,
            augment=self.data.augment,
            batch_size=BATCH,
            seed=0,
            device=self.place.device,
        )

    @cached_property
    def batch(self) -> Batch:
        """The floor's one batch."""
        return next(iter(self.batches.epoch(1)))

    def networks(self, terms: Terms, memory_format: torch.memory_format) -> Networks:
        """Student, teacher and objective with the weights that the engine begins with."""
        trial = self.trial(terms)
        student, teacher = self._network(trial.student), self._network(self.teacher_trial.student)
        teacher.load_state_dict(checkpoint.load_weights(self.layout.trial(self.teacher_trial.key).last))
        for network in (student, teacher):
            network.to(self.place.device).to(memory_format=memory_format).eval()
        teacher.requires_grad_(False)
        objective = Objective(trial.objective, self._probe(student, teacher), trial.seed)
        return Networks(student.train(), teacher, objective.to(self.place.device).train())

    @property
    def teacher_trial(self) -> Trial:
        found = self.trial(METHODS["kd"]).teacher
        assert found is not None
        return found

    def train_teacher(self) -> None:
        """Leave a teacher where the engine looks for one. It has only measured its statistics."""
        folder = self.layout.trial(self.teacher_trial.key)
        if folder.done:
            return
        network = self._network(self.teacher_trial.student).train()
        with torch.no_grad():
            for batch in self.batches.ordered(BATCH):
                network(batch.image.cpu())
        now = time.time()
        result = TrialResult(key=self.teacher_trial.key, status="finished", started=now, ended=now)
        checkpoint.save_weights(folder.last, network.state_dict())
        folder.result.write_text(result.model_dump_json(), encoding="utf-8")

    def _network(self, model: Model) -> nn.Module:
        return create(model.name, classes=self.splits.card.classes, channels=self.splits.card.channels, seed=0)

    @torch.no_grad()
    def _probe(self, student: nn.Module, teacher: nn.Module) -> Probe:
        image_2CHW: Tensor = self.batch.image[:2]
        known: Mapping[str, Any] = {"classes": self.splits.card.classes, "labels_N": self.batches.labels}
        make: Callable[[ModelOutput], Probe] = partial(Probe, teacher=teacher(image_2CHW), batch_size=BATCH, **known)
        return make(student(image_2CHW))._replace(**facts(teacher, self.splits.card.classes))


def images(steps: int) -> int:
    """Images of an epoch of so many full batches, of every class at least one."""
    return max(steps * BATCH, CLASSES)


def recipe(epochs: int, precision: str) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "batch_size": BATCH,
        "optimizer": {"name": "sgd", "lr": LR},
        "schedule": {"name": "constant"},
        "precision": precision,
    }
