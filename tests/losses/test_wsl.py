"""Weighted soft labels against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.wsl import Config, Loss


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max())
    return e / e.sum()


@pytest.mark.parametrize("temperature", [2.0, 1.5])
def test_equals_loops(scene: Any, temperature: float) -> None:
    total, weights = 0.0, []
    for z_s, z_t, y in zip(scene.out_s.logits.double(), scene.out_t.logits.double(), scene.batch.target, strict=True):
        ce_s, ce_t = (-np.log(softmax(z.numpy())[y]) for z in (z_s, z_t))
        p_s, p_t = (softmax(z.numpy() / temperature) for z in (z_s, z_t))
        weights.append(1 - np.exp(-ce_s / ce_t))
        total -= weights[-1] * sum(p_t[k] * np.log(p_s[k]) for k in range(7))
    result = scene.value("wsl", {"temperature": temperature})
    assert result.value.item() == pytest.approx(temperature**2 * total / 5, rel=1e-5)
    assert result.parts["image_weight"].item() == pytest.approx(np.mean(weights), rel=1e-5)


def test_the_weights_have_no_gradient(scene: Any) -> None:
    """The gradient is that of the weighted cross-entropy: T · w · (p_s − p_t) / B, w the same for all as here s = t."""
    logits = scene.out_t.logits.clone().requires_grad_()
    scene.out_s = scene.out_t._replace(logits=logits)
    result = scene.value("wsl")
    result.value.backward()
    assert result.parts["image_weight"].item() == pytest.approx(1 - np.exp(-1), rel=1e-4)
    assert logits.grad.abs().max() < 1e-6


def test_saturated_networks_are_survived(scene: Any) -> None:
    right, wrong = (1e4 * torch.eye(7)[(scene.batch.target + shift) % 7] for shift in (0, 1))
    for z_s, z_t, expected in [(right, wrong, 0), (wrong, right, 1), (right, right, 0), (wrong, wrong, 1 - np.exp(-1))]:
        out_s, out_t = (scene.out_s._replace(logits=z.clone().requires_grad_()) for z in (z_s, z_t))
        result = scene.loss("wsl")(out_s, out_t, scene.batch)
        result.value.backward()
        assert result.parts["image_weight"].item() == pytest.approx(expected)
        assert result.value.isfinite()
        assert out_s.logits.grad.isfinite().all()


def test_a_teacher_is_needed(scene: Any) -> None:
    with pytest.raises(OtkdError, match="wsl compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))
