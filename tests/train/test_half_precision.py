"""Fifty steps in bfloat16 with every transport solver, on real CIFAR-100 images where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from otkd.core import plugins
from otkd.core.trial import Data
from otkd.data.batches import Batches
from otkd.data.pipeline import prepare
from otkd.losses.base import Probe
from otkd.losses.objective import Objective
from otkd.models.factory import create

REAL = os.environ.get("OTKD_DATA_DIR")
STEPS, LOOK_EVERY, BATCH = 50, 10, 32
NEAR = {"gromov": 0.5}
"""Its objective has many local optima, and the features' last digits decide which of them is found."""


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    data = Data(name="cifar100", limit=1600) if REAL else Data(name="digits", limit=1200)
    splits = prepare(data, data_dir=Path(REAL) if REAL else None, cache_dir=tmp_path_factory.mktemp("cache"))
    return Batches(splits.train, splits.card, augment=None, batch_size=BATCH, seed=0, device="cpu")


@pytest.mark.parametrize("solver", plugins.names("ot"))
def test_fifty_steps_in_bfloat16_are_finite_and_near_single_precision(solver: str, batches: Batches) -> None:
    """Every tenth step the term is computed with the same weights in single precision throughout; the means agree."""
    image = next(iter(batches.ordered(2))).image
    classes = int(batches.labels.max()) + 1
    student, teacher = (
        create(name, classes=classes, channels=image.shape[1], seed=0) for name in ("resnet8", "wrn_16_1")
    )
    teacher.eval().requires_grad_(False)
    terms = {"ce": {"weight": 1.0}, "transport": {"weight": 1.0, "solver": {"name": solver}}}
    full = {name: plugins.configure("losses", name, options).model_dump(mode="json") for name, options in terms.items()}
    with torch.no_grad():
        objective = Objective(full, Probe(student.eval()(image), teacher(image), classes))
    parameters = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    student.train(), objective.train()
    looks = []
    for step, batch in zip(range(STEPS), stream(batches), strict=False):
        if step % LOOK_EVERY == 0:
            looks.append(compare(student, teacher, objective, batch))
        with torch.autocast("cpu", torch.bfloat16):
            output = objective(student(batch.image), teacher(batch.image), batch)
        optimizer.zero_grad()
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None)
        optimizer.step()
    assert len(looks) == STEPS // LOOK_EVERY
    half, single = (sum(values) / len(looks) for values in zip(*looks, strict=True))
    assert half == pytest.approx(single, rel=NEAR.get(solver, 0.01))


def stream(batches: Batches):
    for epoch in range(1, STEPS + 1):
        yield from batches.epoch(epoch)


@torch.no_grad()
def compare(student, teacher, objective, batch) -> tuple[float, float]:
    """The transport term in bfloat16 and in single precision: same weights, same images, same random draws."""
    student.eval(), objective.eval()
    values = []
    for half in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = objective(student(batch.image), teacher(batch.image), batch)
        values.append(output.metrics["train/transport/raw"].item())
    student.train(), objective.train()
    return values[0], values[1]
