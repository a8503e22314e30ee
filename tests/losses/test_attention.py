"""Attention transfer against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from otkd.core.cards import ModelCard
from otkd.core.errors import OtkdError
from otkd.losses.attention import Config, Loss
from otkd.losses.base import Probe

from .oracles import pooled


def attention(x: Any, p: int) -> Any:
    energy = (np.abs(x) ** p).mean(0).ravel()
    return energy / np.sqrt((energy**2).sum())


def expected(out_s: Any, out_t: Any, p: int, variant: str) -> float:
    total = 0.0
    for map_s, map_t in zip(out_s.features[1:], out_t.features[1:], strict=True):
        h, w = (min(map_s.shape[axis], map_t.shape[axis]) for axis in (2, 3))
        for b in range(5):
            s, t = (attention(pooled(m[b].double().numpy(), h, w), p) for m in (map_s, map_t))
            total += (((s - t) ** 2).mean() if variant == "code" else np.sqrt(((s - t) ** 2).sum())) / 5
    return total


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_equals_loops(scene: Any, p: int, variant: str) -> None:
    value = scene.value("attention", {"p": p, "variant": variant}).value.item()
    assert value == pytest.approx(expected(scene.out_s, scene.out_t, p, variant), rel=1e-5)


def test_an_empty_map_is_survived(scene: Any) -> None:
    scene.out_s = scene.out_s._replace(features=tuple(torch.zeros_like(f) for f in scene.out_s.features))
    assert scene.value("attention").value.isfinite()


def test_unequal_numbers_of_stages_are_a_problem(scene: Any, cards: Any) -> None:
    student, _ = cards
    teacher = ModelCard(1, (*student.taps, "stage4"), (*student.channels, 8), 8)
    (problem,) = Config().check(student, teacher)
    assert "the teacher stage1, stage2, stage3, stage4" in problem.message
    longer = scene.out_t._replace(features=(*scene.out_t.features, scene.out_t.features[-1]))
    with pytest.raises(OtkdError, match="the student has 3, the teacher 4"):
        Loss(Config(), Probe(scene.out_s, longer, 7))
