"""Every term in training, by itself beside cross-entropy, on three kinds of pairs; a new one is tested unnamed.

All terms of a pair train as one cohort, once through and once with an interruption after the first epoch.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from otkd.core import plugins
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Augment, Data, Model, Sgd, Train, Trial
from otkd.sweep.runner import Mailbox
from otkd.train import Environment, fit
from otkd.train.engine import CohortTrainer

pytestmark = pytest.mark.long

PAIRS = {
    "same family": ("resnet8", "resnet14"),
    "wider": ("resnet8", "resnet8x4"),
    "cross family": ("ShuffleV1", "resnet14"),
}
DATA = Data(name="digits", limit=40, augment=Augment(pad=1))
TRAIN = Train(epochs=2, batch_size=16, optimizer=Sgd(name="sgd", lr=0.01), precision="fp32")
STEPS = 3
"""In an epoch: 16, 16 and 8 images."""
TERMS = plugins.names("losses")


class Seen(NamedTuple):
    """What became of a term."""

    result: TrialResult
    resumed: TrialResult
    counts: set[int]
    """How often the student's batch norms were stepped in the first epoch of the main stage and before."""
    steps: int
    """How many steps the student had taken part in by then."""
    sound: bool
    """Whether every gradient that there was in the last step of that epoch was finite, and there was one."""


class Pair(NamedTuple):
    seen: dict[str, Seen]
    untouched: bool
    """Whether the teacher has neither gradients nor other buffers than before."""


def options(term: str) -> dict[str, Any]:
    """The default, but for stages of 30 epochs and weights that a warm-up hides."""
    fields = plugins.head("losses", term).Config.model_fields
    short = {"stages": {"epochs": 1, "lr": 0.01}} if fields.get("stages") and fields["stages"].default else {}
    return short | {"schedule": None}


def possible(term: str, pair: str) -> bool:
    student, teacher = (plugins.cards("models")[name] for name in PAIRS[pair])
    return not list(plugins.configure("losses", term, options(term)).check(student, teacher))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def train(pair: str) -> Pair:
        torch.set_num_threads(1)
        return _train(pair, tmp_path_factory.mktemp("terms"))

    return train


def _train(pair: str, root: Path) -> Pair:
    student, teacher = PAIRS[pair]
    taught = Trial(data=DATA, student=Model(name=teacher), objective={"ce": {}}, train=TRAIN)
    trials = {
        term: Trial(
            data=DATA,
            student=Model(name=student),
            teacher=taught,
            train=TRAIN,
            objective={"ce": {}, term: options(term)},
        )
        for term in TERMS
        if possible(term, pair)
    }
    once, twice = (Environment(layout=Layout(root / name), device="cpu") for name in ("once", "twice"))
    for environment in (once, twice):
        fit([taught], Mailbox(), environment)
    trainer = CohortTrainer(list(trials.values()), Mailbox(), once)
    assert trainer.teacher is not None
    before = {name: tensor.clone() for name, tensor in trainer.teacher.model.state_dict().items()}
    while any(member.tick < 2 for member in trainer.students):
        trainer.step()
    looks = {member.trial.key: _look(member) for member in trainer.students}
    while not trainer.done:
        trainer.step()
    after = trainer.teacher.model.state_dict()
    untouched = all(torch.equal(after[name], tensor) for name, tensor in before.items())
    untouched &= all(parameter.grad is None for parameter in trainer.teacher.model.parameters())
    resumed = _interrupted(list(trials.values()), twice)
    seen = {
        term: Seen(trainer.results[trial.key], resumed[trial.key], *looks.get(trial.key, (set(), 0, False)))
        for term, trial in trials.items()
    }
    return Pair(seen, untouched)


def _look(member: Any) -> tuple[set[int], int, bool]:
    norms = [module for module in member.model.modules() if isinstance(module, nn.BatchNorm2d)]
    gradients = [p.grad for p in [*member.model.parameters(), *member.objective.parameters()] if p.grad is not None]
    sound = bool(gradients) and all(gradient.isfinite().all() for gradient in gradients)
    epochs = 1 + sum(stage.epochs for stage in member.stages if stage.student)
    return {int(norm.num_batches_tracked) for norm in norms}, STEPS * epochs, sound


class Stop(BaseException):
    """Ends training where it stands, as a killed process does."""


class Halting(CohortTrainer):
    """Stops after one batch."""

    def _train_batch(self, *args: Any) -> None:
        super()._train_batch(*args)
        raise Stop


def _interrupted(trials: list[Trial], environment: Environment) -> dict[str, TrialResult]:
    """Stopped after the first batch of every epoch and after its last, and begun again from the checkpoints."""
    for attempt in range(2 * (TRAIN.epochs + 4)):  # stages have one epoch each
        trainer = (CohortTrainer if attempt % 2 else Halting)(trials, Mailbox(), environment)
        if not trainer.done:
            with suppress(Stop):
                trainer.step()
        if trainer.done:
            break
        trainer.save()
    return trainer.results


CASES = [(pair, term) for pair in PAIRS for term in TERMS if possible(term, pair)]


@pytest.mark.parametrize(("pair", "term"), CASES)
def test_it_trains(trained: Any, pair: str, term: str) -> None:
    seen = trained(pair).seen[term]
    assert seen.result.status == "finished", seen.result.reason
    assert seen.sound
    assert all(math.isfinite(value) for record in seen.result.epochs for value in record.metrics.values())
    assert any(f"train/{term}/raw" in record.metrics for record in seen.result.epochs)


@pytest.mark.parametrize(("pair", "term"), CASES)
def test_batch_norm_is_stepped_once_a_step(trained: Any, pair: str, term: str) -> None:
    seen = trained(pair).seen[term]
    assert seen.counts == {seen.steps}


@pytest.mark.parametrize(("pair", "term"), CASES)
def test_resumed_equals_uninterrupted(trained: Any, pair: str, term: str) -> None:
    seen = trained(pair).seen[term]
    times = ("time/", "wall", "prepare", "latency", "images_per_s", "peak")
    whole, parts = (
        {
            (record.stage, record.epoch, name): value
            for record in result.epochs
            for name, value in record.metrics.items()
            if not name.startswith(("time/", "throughput/", "memory/", "energy/", "system/"))
        }
        | {name: value for name, value in result.metrics.items() if name.startswith("test/")}
        for result in (seen.result, seen.resumed)
    )
    whole, parts = (
        {name: value for name, value in found.items() if not any(word in str(name) for word in times)}
        for found in (whole, parts)
    )
    assert whole == parts


@pytest.mark.parametrize("pair", PAIRS)
def test_the_teacher_is_left_as_it_was(trained: Any, pair: str) -> None:
    assert trained(pair).untouched


def test_most_terms_are_possible_everywhere() -> None:
    assert {term for term in TERMS if not all(possible(term, pair) for pair in PAIRS)} == {"fsp"}
