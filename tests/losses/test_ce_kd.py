"""Cross-entropy and Hinton's distillation against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import LogitStdKDLoss


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


def test_standardised_logits(scene: Any) -> None:
    z_s, z_t = (out.logits.double().numpy() for out in (scene.out_s, scene.out_t))
    s, t = (softmax((z - z.mean(1)[:, None]) / z.std(1, ddof=1)[:, None] / 2) for z in (z_s, z_t))
    divergence = sum(t[b, k] * np.log(t[b, k] / s[b, k]) for b in range(5) for k in range(7)) / 5
    value = scene.value("kd", {"standardize": True, "temperature": 2.0}).value.item()
    assert value == pytest.approx(4 * divergence, rel=1e-5)


def test_standardised_logits_equal_torchdistill(scene: Any) -> None:
    """Which leaves T² out where it adds no cross-entropy."""
    said = LogitStdKDLoss(".", "output", ".", "output", temperature=2.0, alpha=0.0, eps=1e-7)
    expected = said({".": {"output": scene.out_s.logits}}, {".": {"output": scene.out_t.logits}})
    value = scene.value("kd", {"standardize": True, "temperature": 2.0, "scaled": False}).value
    torch.testing.assert_close(value, expected)


def test_standardised_logits_forget_scale_and_shift(scene: Any) -> None:
    scene.out_s = scene.out_t._replace(logits=3 * scene.out_t.logits + 5)
    assert scene.value("kd", {"standardize": True}).value.item() == pytest.approx(0, abs=1e-6)
    assert scene.value("kd").value > 0.1


def test_standardised_logits_that_are_all_equal_are_survived(scene: Any) -> None:
    logits = torch.zeros(5, 7, requires_grad=True)
    scene.out_s = scene.out_s._replace(logits=logits)
    value = scene.value("kd", {"standardize": True}).value
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
