"""Outputs of two networks that never were: five images, a stem and three stages, odd sizes, unequal widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from otkd.core import plugins
from otkd.core.cards import ModelCard
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss

CLASSES = 7
TAPS = ("stem", "stage1", "stage2", "stage3")
STUDENT = ((3, 11, 9), (4, 11, 9), (5, 7, 6), (6, 3, 4))
TEACHER = ((4, 11, 9), (6, 11, 9), (9, 5, 6), (17, 3, 2))
KIN = ((3, 10, 9), (4, 10, 9), (5, 5, 6), (6, 3, 2))
"""A teacher with the student's channels, for terms that compare channel by channel."""


def output(
    shapes: tuple[tuple[int, int, int], ...], width: int, batch: int = 5, seed: int = 0, taps: tuple[str, ...] = TAPS
) -> ModelOutput:
    """Random outputs in float32: maps of `shapes` (C, H, W) and an embedding of `width`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    preacts = tuple(draw(*shape) for shape in shapes[1:])
    features = (draw(*shapes[0]).relu(), *(preact.relu() for preact in preacts))
    return ModelOutput(3 * draw(CLASSES), draw(width), features, preacts, taps)


def convert(out: ModelOutput, change: Callable[[Tensor], Tensor]) -> ModelOutput:
    """`change` applied to every tensor."""
    return ModelOutput(
        change(out.logits),
        change(out.embedding),
        tuple(map(change, out.features)),
        tuple(map(change, out.preacts)),
        out.taps,
    )


class Scene:
    """Both networks' outputs for one batch, and the way to a term's value."""

    convert = staticmethod(convert)

    def __init__(self, shapes_t: tuple[tuple[int, int, int], ...] = TEACHER) -> None:
        self.out_s, self.out_t = output(STUDENT, 13), output(shapes_t, shapes_t[-1][0], seed=1)
        generator = torch.Generator().manual_seed(2)
        self.batch = Batch(
            torch.randn(5, 3, 11, 9, generator=generator),
            torch.randint(CLASSES, (5,), generator=generator),
            torch.arange(5),
        )
        self.known: dict[str, Any] = {}
        """What the probe has beside the outputs: nothing, unless `knowing` was called."""

    def knowing(self) -> Scene:
        """The same with the teacher's classifier and batch norms, and the training images' labels, in the probe."""
        generator = torch.Generator().manual_seed(4)
        width = self.out_t.embedding.shape[1]
        self.known = {
            "classifier_t": torch.randn(CLASSES, width, generator=generator),
            "bias_t": torch.randn(CLASSES, generator=generator),
            "norms_t": tuple(
                (torch.rand(f.shape[1], generator=generator) + 0.5, torch.randn(f.shape[1], generator=generator))
                for f in self.out_t.stages
            ),
            "labels_N": torch.cat([self.batch.target, torch.arange(40) % CLASSES]),
            "batch_size": 5,
        }
        return self

    def probe(self) -> Probe:
        """Both outputs for two images."""
        out_s, out_t = (convert(out, lambda t: t[:2]) for out in (self.out_s, self.out_t))
        return Probe(out_s, out_t, CLASSES, **self.known)

    def loss(self, name: str, options: Mapping[str, Any] | None = None) -> TermLoss:
        """The term, built as the objective builds it: from plain JSON, on outputs for two images."""
        dumped = plugins.configure("losses", name, options or {}).model_dump(mode="json")
        module = plugins.load("losses", name)
        probe = self.probe()
        with seeded(3):
            loss: TermLoss = module.Loss(module.Config.model_validate(dumped), probe)
        return loss

    def value(self, name: str, options: Mapping[str, Any] | None = None) -> LossOutput:
        result: LossOutput = self.loss(name, options)(self.out_s, self.out_t, self.batch)
        return result


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def kin_scene() -> Scene:
    """A teacher with the student's channels."""
    return Scene(KIN)


def card(shapes: tuple[tuple[int, int, int], ...], width: int) -> ModelCard:
    return ModelCard(1, TAPS, tuple(shape[0] for shape in shapes), width, strides=(1, 1, 2, 4))


@pytest.fixture
def cards() -> tuple[ModelCard, ModelCard]:
    """The cards of the scene's student and teacher."""
    return card(STUDENT, 13), card(TEACHER, 17)


@pytest.fixture
def kin() -> tuple[ModelCard, ModelCard]:
    """The cards of the student and of a teacher with the same channels."""
    return card(STUDENT, 13), card(KIN, 6)
