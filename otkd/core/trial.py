"""What a trial is: everything that can change a result, and nothing which cannot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from otkd.core import plugins
from otkd.core.config import StrictModel


class Augment(StrictModel):
    """Batch augmentation of training images."""

    pad: NonNegativeInt = 0
    """Zero pixels added on every side before a random crop back to size."""
    flip: bool = False
    """Mirror half of the images left-right."""


class Data(StrictModel):
    """Which images, and how they are split."""

    name: str
    """Data set (`otkd list data`)."""
    val: Annotated[NonNegativeFloat, Field(strict=False)] = 0
    """Validation images held out of the training set: a count, or a share below 1; 0 (usual in papers) for none."""
    limit: PositiveInt | None = None
    """Use only so many training images (before the split), balanced over classes."""
    split_seed: NonNegativeInt = 0
    """Seed of `limit` and of the split; teacher and student share it, so neither sees the other's validation images."""
    augment: Augment | None = None
    """Batch augmentation; each data set has its usual one as default."""

    @model_validator(mode="before")
    @classmethod
    def _usual_augmentation(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("augment") is None:
            card = plugins.cards("data").get(str(given.get("name")))
            if card is not None:
                return {**given, "augment": {"pad": card.augment.pad, "flip": card.augment.flip}}
        return given


class Sgd(StrictModel):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: PositiveFloat = 0.05
    """Learning rate at the start of the schedule."""
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty on every trained parameter."""
    nesterov: bool = False


class Dot(StrictModel):
    """Distillation-oriented training: SGD whose momentum is smaller for the task and larger for distillation."""

    name: Literal["dot"]
    lr: PositiveFloat = 0.05
    """Learning rate at the start of the schedule."""
    momentum: NonNegativeFloat = 0.9
    """Momentum between that of the task and that of distillation."""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty on every trained parameter; it goes with the task."""
    delta: NonNegativeFloat = 0.075
    """What is taken from the task's momentum and added to that of distillation."""

    @model_validator(mode="after")
    def _within_momentum(self) -> Dot:
        if self.delta > self.momentum or self.momentum + self.delta >= 1:
            raise ValueError(f"momentum ± delta lies between 0 and 1. Got {self.momentum} ± {self.delta}.")
        return self


class AdamW(StrictModel):
    """AdamW."""

    name: Literal["adamw"]
    lr: PositiveFloat = 1e-3
    """Learning rate at the start of the schedule."""
    betas: tuple[float, float] = Field((0.9, 0.999), strict=False)
    """Decay of the running averages of gradient and squared gradient."""
    weight_decay: NonNegativeFloat = 1e-2
    """Decoupled weight decay."""


class Schedule(StrictModel):
    """What every learning-rate schedule has."""

    warmup: NonNegativeInt = 0
    """Epochs of linear warm-up from near 0 before the schedule proper."""


class Constant(Schedule):
    """The learning rate stays as it is."""

    name: Literal["constant"]


class Step(Schedule):
    """Multiply the learning rate by `gamma` after each milestone."""

    name: Literal["step"]
    milestones: tuple[PositiveInt, ...] = Field((150, 180, 210), strict=False)
    """Epochs after which the rate drops: 150 means that epochs 151, 152, … run at the lower rate."""
    gamma: PositiveFloat = 0.1
    """Factor at each milestone."""


class Cosine(Schedule):
    """Half a cosine from the learning rate to `final` times it, by step."""

    name: Literal["cosine"]
    final: NonNegativeFloat = 0.0
    """Share of the learning rate that is left at the end."""


class OneCycle(Schedule):
    """Up from lr/25 to lr over `peak` of the training, then down to lr/1e4, both along cosines, by step."""

    name: Literal["onecycle"]
    peak: PositiveFloat = Field(0.3, lt=1)
    """Share of the training at which the rate is highest."""


class Train(StrictModel):
    """The recipe: how long and how weights are updated."""

    epochs: NonNegativeInt
    """Passes over the training images; 0 measures the weights that there are."""
    batch_size: PositiveInt = 64
    """Images per step; the last, smaller batch is kept (unless it has a single image, which batch norm cannot take)."""
    optimizer: Annotated[Sgd | AdamW | Dot, Field(discriminator="name")] = Sgd(name="sgd")
    """How weights are updated."""
    schedule: Annotated[Constant | Step | Cosine | OneCycle, Field(discriminator="name")] = Cosine(name="cosine")
    """How the learning rate changes."""
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm over all parameters of a student; larger gradients are scaled down."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; `auto` is bf16 autocast where that is faster. The record says which ran."""

    @model_validator(mode="after")
    def _one_gradient_to_clip(self) -> Train:
        if self.clip_norm is not None and isinstance(self.optimizer, Dot):
            raise ValueError("clip_norm bounds one gradient, and the optimizer dot has two; leave one of both out.")
        return self


class Model(StrictModel):
    """A network by name."""

    name: str
    """Architecture (`otkd list models`)."""
    weights: str | None = None
    """Digest of the weights that it begins with (see `otkd.core.weights`); none are drawn from the seed."""


class Trial(StrictModel):
    """One training: a network, its data, objective, recipe and seed; a student also has its teacher's whole trial.

    `key` is the trial's identity everywhere: memoisation, resuming, finding a teacher, joining tables.
    """

    data: Data
    student: Model
    """The network being trained (also when it is to become a teacher)."""
    teacher: Trial | None = None
    """How the teacher was trained; None for a network trained without one."""
    objective: dict[str, dict[str, Any]]
    """Term → its full configuration, weight included."""
    train: Train
    seed: NonNegativeInt = 0
    """Seed of initialisation, batch order, augmentation and dropout."""

    @field_validator("objective")
    @classmethod
    def _with_defaults(cls, terms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: plugins.configure("losses", name, options).model_dump(mode="json") for name, options in terms.items()
        }

    @property
    def key(self) -> str:
        """Sixteen hex digits: SHA-256 of the canonical JSON with every default filled in."""
        return digest(self.model_dump(mode="json"))

    @property
    def cohort(self) -> str:
        """The same for all trials that differ in nothing but their objective."""
        return digest(self.model_dump(mode="json", exclude={"objective"}))


def digest(value: Any) -> str:
    """Sixteen hex digits that identify a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
