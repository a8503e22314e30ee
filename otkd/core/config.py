"""Base classes of everything that a sweep file can set: strict, frozen, self-describing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from otkd.core.cards import ModelCard
from otkd.core.errors import Problem


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys and silent conversions.

    The string under a field is its help text (`otkd list`, the JSON schema).
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


class PluginConfig(StrictModel):
    """What every nested plug-in (a transport solver, say) is chosen by."""

    name: str
    """The plug-in's file name without `.py`."""


class SolverConfig(PluginConfig):
    """What every transport solver of `otkd/ot/` is configured by; the class says what planning has to know of it."""

    takes: ClassVar[Literal["cost", "points"]] = "cost"
    """What `solve` takes first: a cost matrix, or the two `Clouds` themselves."""
    costs: ClassVar[tuple[str, ...]] = ("sqeuclidean", "euclidean", "cosine")
    """The costs that the formulation is defined for."""
    any_widths: ClassVar[bool] = False
    """Whether the two clouds may lie in spaces of different dimension, so that nothing need be projected."""
    warm: ClassVar[bool] = False
    """Whether `solve` takes `start=`, the potentials (f, g) of an earlier problem."""
    balanced: ClassVar[bool] = True
    """Whether the plan, where there is one, has the asked marginals."""
    matrices: ClassVar[int] = 4
    """The most matrices of N × M that it keeps beside the cost between the clouds, in the precision that it computes
    in; 0 where memory grows with N + M."""
    waits: ClassVar[bool] = False
    """Whether it makes the host wait for a GPU, also where equal weights need no check."""


class Warmup(StrictModel):
    """A term's weight rises in equal steps, one an epoch, until it is whole."""

    name: Literal["warmup"]
    epochs: PositiveInt = 20
    """The epoch in which the weight is whole for the first time."""

    def factor(self, epoch: int, epochs: int) -> float:
        """Share of the weight in an epoch, counted from 1, of so many."""
        return min(epoch / self.epochs, 1.0)


class CosineDecay(StrictModel):
    """A term's weight falls along half a cosine, by epoch, to 0."""

    name: Literal["cosine"]
    start: NonNegativeInt = 0
    """The last epoch with the whole weight."""
    end: PositiveInt | None = None
    """The first epoch with none; by default the last of the training."""

    def factor(self, epoch: int, epochs: int) -> float:
        """Share of the weight in an epoch, counted from 1, of so many."""
        end = epochs if self.end is None else self.end
        share = (epoch - self.start) / max(end - self.start, 1)
        return (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2

    @model_validator(mode="after")
    def _end_after_start(self) -> CosineDecay:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end comes after start. Got {self.start} to {self.end}.")
        return self


WeightSchedule = Annotated[Warmup | CosineDecay, Field(discriminator="name")] | None


class TermConfig(StrictModel):
    """What every term of an objective has."""

    weight: NonNegativeFloat = 1.0
    """Factor of this term in the weighted sum of the main stage; in a stage of its own a term stands alone."""
    schedule: WeightSchedule = None
    """How the weight changes from epoch to epoch of the main stage: `{name: warmup, epochs}` or `{name: cosine, start,
    end}`; by default it is constant."""

    @property
    def one_label(self) -> bool:
        """Whether the term is defined only for images of one label, so that images cannot be mixed of two."""
        return False

    @property
    def in_training(self) -> bool:
        """Whether the term takes part in the main stage."""
        return True

    def weight_in(self, epoch: int, epochs: int) -> float:
        """The weight in an epoch of the main stage, counted from 1, of so many."""
        return self.weight * (1.0 if self.schedule is None else self.schedule.factor(epoch, epochs))

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """Say what of this term is impossible for this pair. Paths are relative to the term.

        The default checks a `layer` field, where the term has one, against both networks.
        """
        layer: Any = getattr(self, "layer", None)
        if layer is not None:
            for card in (student, teacher):
                if card is not None:
                    yield from card.check_layer(layer)
