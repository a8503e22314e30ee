"""Cross-entropy and Hinton's distillation against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_cross_entropy(scene: Any) -> None:
    p = softmax(scene.out_s.logits.double().numpy())
    expected = -np.mean([np.log(p[b, scene.batch.target[b]]) for b in range(5)])
    assert scene.value("ce").value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("options", "temperature", "factor"), [({}, 4, 16), ({"temperature": 1.5}, 1.5, 2.25)])
def test_kd(scene: Any, options: dict[str, Any], temperature: float, factor: float) -> None:
    s, t = (softmax(out.logits.double().numpy() / temperature) for out in (scene.out_s, scene.out_t))
    divergence = sum(t[b, k] * np.log(t[b, k] / s[b, k]) for b in range(5) for k in range(7)) / 5
    assert scene.value("kd", options).value.item() == pytest.approx(factor * divergence, rel=1e-5)
    assert scene.value("kd", {**options, "scaled": False}).value.item() == pytest.approx(divergence, rel=1e-5)


def test_kd_is_zero_at_the_teacher_and_positive_elsewhere(scene: Any) -> None:
    assert scene.value("kd").value > 0
    scene.out_s = scene.out_t
    assert scene.value("kd").value.item() == pytest.approx(0, abs=1e-6)


def test_kd_of_a_saturated_student_is_finite(scene: Any) -> None:
    scene.out_s = scene.out_s._replace(logits=1e4 * torch.eye(7)[:5])
    assert scene.value("kd").value.isfinite()
