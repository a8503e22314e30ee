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

from otkd.core import datasets, plugins
from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.config import StrictModel
from otkd.core.errors import Problem


class Data(StrictModel):
    """Which images, and how they are split."""

    name: str
    """Data set (`otkd list data`); `folder/<name>` and `parquet/<name>` are sets of your own in the data folder."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that data set's own, e.g. `{extra: true}` of svhn."""
    val: Annotated[NonNegativeFloat, Field(strict=False)] = 0
    """Validation images held out of the training set: a count, or a share below 1; 0 (usual in papers) for none."""
    limit: PositiveInt | None = None
    """Use only so many training images (before the split), balanced over classes."""
    split_seed: NonNegativeInt = 0
    """Seed of `limit` and of the split; teacher and student share it, so neither sees the other's validation images."""
    skip: NonNegativeInt = 0
    """Unreadable images that may be left out of an epoch where images are streamed; one more ends the trial."""
    augment: Augment | None = None
    """Augmentation of training batches; each data set has its usual one as default."""

    @model_validator(mode="before")
    @classmethod
    def _with_the_data_sets_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not datasets.known(given.get("name")):
            return given
        options = {} if given.get("options") is None else given["options"]
        if not isinstance(options, Mapping):
            return given
        own = datasets.configure(given["name"], options)
        filled = {**given, "options": own.model_dump(mode="json")}
        if given.get("augment") is None:
            filled["augment"] = datasets.card(given["name"], own).augment.model_dump()
        return filled

    @model_validator(mode="after")
    def _skips_only_what_is_streamed(self) -> Data:
        if self.skip and datasets.known(self.name) and not self.card.streamed:
            stream = "stream" in type(self.own_options).model_fields
            way_out = "Add `options: {stream: true}`, or leave skip out." if stream else "Leave skip out."
            text = f"images of {self.name} are held in memory; only streamed ones can be left out. Got {self.skip}. "
            raise plugins.Nested((Problem("skip", text + way_out),))
        return self

    @property
    def own_options(self) -> datasets.DataOptions:
        """`options` as the data set's plug-in knows them.

        Raises:
            OtkdError: there is no such data set; names the nearest.
        """
        return datasets.configure(self.name, self.options)

    @property
    def card(self) -> DataCard:
        """What is known of the data set with these options. Errors as for `own_options`."""
        return datasets.card(self.name, self.own_options)


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
    accumulate: PositiveInt = 1
    """Parts that a batch is cut into, whose gradients are added up before a step: less memory for the same number of
    images a step, but batch norm and losses that compare images see one part at a time."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the running average of the weights that each step keeps (0.999, say); the averaged network is then the
    one that is evaluated, selected and kept. None for the weights as they are."""
    sync_batchnorm: bool = True
    """Where several processes share a batch: batch norm over all of it, as in one process. Without, each normalises its
    own images, which is faster, and the result depends on the number of processes."""
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm over all parameters of a student; larger gradients are scaled down."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; `auto` is bf16 autocast where that is faster. The record says which ran."""

    @model_validator(mode="after")
    def _one_gradient(self) -> Train:
        for name, asked in (("clip_norm", self.clip_norm is not None), ("accumulate", self.accumulate > 1)):
            if asked and isinstance(self.optimizer, Dot):
                raise ValueError(f"{name} is of one gradient, and the optimizer dot has two; leave one of both out.")
        if self.accumulate > max(self.batch_size // 2, 1):
            raise ValueError(f"accumulate: {self.accumulate} parts of a batch of {self.batch_size} are below 2 images.")
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
