"""A student's training step as the engine makes it. The teacher's forward pass, the same for all, is left out."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.transport.measure import Effort, alternate, spread
from otkd.core import plugins
from otkd.core.layout import Layout
from otkd.core.output import Batch
from otkd.core.trial import Trial
from otkd.losses.base import Probe
from otkd.models.factory import create
from otkd.train.device import autocast_dtype
from otkd.train.student import Student

BASE = "ce + kd"
OBJECTIVES: dict[str, dict[str, dict[str, Any]]] = {
    BASE: {"ce": {}, "kd": {}},
    "ce + transport(sinkhorn)": {"ce": {}, "transport": {"solver": "sinkhorn"}},
}


def training_step(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Time of a step by objective."""
    batch = random_batch(device)
    teacher = (
        create("wrn_40_2", classes=100, channels=3, seed=1).eval().to(device).to(memory_format=torch.channels_last)
    )
    with torch.no_grad():
        out_t = teacher(batch.image)
        made = {name: student(objective, batch.image, teacher) for name, objective in OBJECTIVES.items()}
    calls = {name: partial(one.train_step, batch, out_t, 10_000) for name, one in made.items()}
    alternate(calls, Effort(2, math.inf, math.inf), device)  # warms up
    times = alternate(calls, Effort(repeats, math.inf, math.inf), device)
    base_ms = statistics.median(times[BASE])
    return [
        {"objective": name, "ms": statistics.median(own), "±": spread(own), "/ kd": statistics.median(own) / base_ms}
        for name, own in times.items()
    ]


def random_batch(device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(64, 3, 32, 32, generator=generator).to(device, memory_format=torch.channels_last)
    target = torch.randint(100, (64,), generator=generator).to(device)
    return Batch(image, target, torch.arange(64, device=device))


def student(objective: Mapping[str, Mapping[str, Any]], image: Tensor, teacher: torch.nn.Module) -> Student:
    with tempfile.TemporaryDirectory() as folder:
        made = Student(
            trial(objective),
            Layout(folder),
            image_2CHW=image[:2],
            probe=partial(Probe, teacher=teacher(image[:2]), classes=100),
            card=plugins.head("data", "cifar100").CARD,
            dtype=autocast_dtype("auto", image.device),
        )
    made.begin_epoch()
    return made


def trial(objective: Mapping[str, Mapping[str, Any]]) -> Trial:
    return Trial.model_validate(
        {
            "data": {"name": "cifar100"},
            "student": {"name": "wrn_16_2"},
            "objective": objective,
            "train": {"epochs": 1, "schedule": {"name": "constant"}},
        }
    )
