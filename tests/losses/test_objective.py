"""What the objective adds to its terms: weights by epoch, stages, and the two sums."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from otkd.core import plugins
from otkd.core.config import CosineDecay, Warmup
from otkd.losses.objective import MAIN, Objective, Position


def built(scene: Any, **terms: Any) -> Objective:
    configured = {
        name: plugins.configure("losses", name, options).model_dump(mode="json") for name, options in terms.items()
    }
    return Objective(configured, scene.probe())


def weighted(objective: Objective, scene: Any, term: str, epoch: int, epochs: int) -> float:
    metrics = objective(scene.out_s, scene.out_t, scene.batch, Position(MAIN, epoch, epochs)).metrics
    return (metrics[f"train/{term}/weighted"] / metrics[f"train/{term}/raw"]).item()


def test_warmup_is_that_of_mdistiller() -> None:
    assert [Warmup(name="warmup", epochs=4).factor(epoch, 9) for epoch in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize(("start", "end", "last"), [(0, None, 10), (3, None, 10), (3, 7, 7)])
def test_cosine_falls_from_whole_to_nothing(start: int, end: int | None, last: int) -> None:
    factors = [CosineDecay(name="cosine", start=start, end=end).factor(epoch, 10) for epoch in range(11)]
    assert factors[: start + 1] == [1.0] * (start + 1)
    assert factors[last:] == pytest.approx([0.0] * (11 - last), abs=1e-12)
    middle = start + (last - start) / 2
    if middle == int(middle):
        assert factors[int(middle)] == pytest.approx(0.5)
    third = (1 + math.cos(math.pi / (last - start))) / 2
    assert factors[start + 1] == pytest.approx(third)


def test_any_term_takes_a_schedule(scene: Any) -> None:
    objective = built(scene, ce={}, kd={"weight": 3, "schedule": {"name": "warmup", "epochs": 2}})
    assert [weighted(objective, scene, "kd", epoch, 5) for epoch in (1, 2, 3)] == pytest.approx([1.5, 3, 3])
    assert weighted(objective, scene, "ce", 1, 5) == 1


def test_in_a_stage_of_its_own_a_term_stands_alone(scene: Any) -> None:
    schedule = {"name": "cosine", "end": 1}
    objective = built(scene, ce={}, fitnet={"weight": 2, "stages": {"epochs": 3, "lr": 0.1}, "schedule": schedule})
    output = objective(scene.out_s, scene.out_t, scene.batch, Position("hint", 3, 3))
    assert set(output.metrics) == {"train/fitnet/raw", "train/fitnet/weighted"}
    torch.testing.assert_close(output.metrics["train/fitnet/weighted"], output.metrics["train/fitnet/raw"])


def test_task_and_distillation_are_told_apart(scene: Any) -> None:
    objective = built(scene, ce={"weight": 0.5}, kd={"weight": 2}, attention={"weight": 3})
    output = objective(scene.out_s, scene.out_t, scene.batch)
    parts = {name: output.metrics[f"train/{name}/weighted"] for name in ("ce", "kd", "attention")}
    torch.testing.assert_close(output.task, parts["ce"])
    torch.testing.assert_close(output.distilled, parts["kd"] + parts["attention"])
    torch.testing.assert_close(output.loss, output.task + output.distilled)
