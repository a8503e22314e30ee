"""Optimizers and learning-rate schedules from their configurations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from otkd.core.trial import AdamW, Constant, Cosine, Dot, OneCycle, Sgd, Step, Train
from otkd.losses.objective import ObjectiveOutput
from otkd.train import dot


def optimizer(config: Sgd | AdamW | Dot, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `config` describes, over `parameters`."""
    return _OPTIMIZERS[config.name](parameters, **config.model_dump(exclude={"name"}))


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "dot": dot.Dot,
}


def backward(optimizer: torch.optim.Optimizer, output: ObjectiveOutput, share: float = 1.0) -> None:
    """Gradients of the objective: of its sum, or of both parts for an optimizer that tells them apart.

    Args:
        share: what the sum is multiplied by, where a batch is cut into parts.
    """
    split = getattr(optimizer, "backward", None)
    if split is None:
        (output.loss if share == 1 else output.loss * share).backward()
    else:
        split(output.task, output.distilled)


def lr_factor(train: Train, progress: float) -> float:
    """What the learning rate is multiplied by after `progress` epochs (a fraction inside an epoch).

    The first step of epoch e (1-based) has progress e - 1.
    """
    schedule = train.schedule
    warmup = min(1.0, (progress + 1e-2) / schedule.warmup) if schedule.warmup else 1.0
    span = max(train.epochs - schedule.warmup, 1)
    share = min(max(progress - schedule.warmup, 0.0) / span, 1.0)
    return warmup * _SHAPES[type(schedule)](schedule, progress, share)


def _step(schedule: Step, progress: float, share: float) -> float:
    return schedule.gamma ** sum(progress >= milestone for milestone in schedule.milestones)


def _cosine(schedule: Cosine, progress: float, share: float) -> float:
    return schedule.final + (1 - schedule.final) * _half_cosine(share)


def _onecycle(schedule: OneCycle, progress: float, share: float) -> float:
    start, end = 1 / 25, 1e-4
    if share < schedule.peak:
        return start + (1 - start) * (1 - _half_cosine(share / schedule.peak))
    return end + (1 - end) * _half_cosine((share - schedule.peak) / (1 - schedule.peak))


def _half_cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


_SHAPES: dict[type, Callable[[Any, float, float], float]] = {
    Constant: lambda schedule, progress, share: 1.0,
    Step: _step,
    Cosine: _cosine,
    OneCycle: _onecycle,
}
