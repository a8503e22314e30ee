"""DKD against plain loops over probabilities, and against Hinton's divergence, which it takes apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from otkd.core.config import Warmup
from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.dkd import Config, Loss


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max())
    return e / e.sum()


def divergence(p: Any, q: Any) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def parts(scene: Any, temperature: float, standardize: bool) -> tuple[Any, Any, Any]:
    """Image by image: the target's divergence, that of the others, and the teacher's probability of the target."""
    target, others, confidence = [], [], []
    for b, y in enumerate(scene.batch.target.tolist()):
        s, t = (out.logits[b].double().numpy() for out in (scene.out_s, scene.out_t))
        if standardize:
            s, t = ((z - z.mean()) / z.std(ddof=1) for z in (s, t))
        p_s, p_t = softmax(s / temperature), softmax(t / temperature)
        target.append(divergence([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]]))
        rest_s, rest_t = (softmax(np.delete(z, y) / temperature) for z in (s, t))
        others.append(divergence(rest_t, rest_s))
        confidence.append(p_t[y])
    return np.array(target), np.array(others), np.array(confidence)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.5)])
def test_equals_loops(scene: Any, alpha: float, beta: float, temperature: float, standardize: bool) -> None:
    target, others, _ = parts(scene, temperature, standardize)
    options = {"alpha": alpha, "beta": beta, "temperature": temperature, "standardize": standardize}
    result = scene.value("dkd", options)
    expected = temperature**2 * (alpha * target.mean() + beta * others.mean())
    assert result.value.item() == pytest.approx(expected, rel=1e-5)
    expected = [target.mean(), others.mean()]
    assert [result.parts[part].item() for part in ("target", "others")] == pytest.approx(expected, rel=1e-5)


def test_its_parts_make_up_hintons_divergence(scene: Any) -> None:
    """KL = target + (1 − p_y) · others, image by image."""
    total = 0.0
    for b in range(5):
        out_s, out_t = (scene.convert(out, lambda t, b=b: t[b : b + 1]) for out in (scene.out_s, scene.out_t))
        batch = scene.batch.rows(slice(b, b + 1))
        found = scene.loss("dkd")(out_s, out_t, batch).parts
        total += (found["target"] + (1 - parts(scene, 4.0, False)[2][b]) * found["others"]).item() / 5
    assert scene.value("kd").value.item() == pytest.approx(16 * total, rel=1e-5)


@pytest.mark.parametrize("standardize", [False, True])
def test_saturated_networks_are_survived(scene: Any, standardize: bool) -> None:
    """Logits of 10⁴, right or wrong: probabilities that are 0 in single precision, and their logarithms infinite."""
    right, wrong = (1e4 * torch.eye(7)[(scene.batch.target + shift) % 7] for shift in (0, 1))
    for z_s, z_t in [(right, wrong), (wrong, right), (right, right), (torch.zeros(5, 7), right)]:
        out_s, out_t = (scene.out_s._replace(logits=z.clone().requires_grad_()) for z in (z_s, z_t))
        value = scene.loss("dkd", {"standardize": standardize})(out_s, out_t, scene.batch).value
        value.backward()
        assert value.isfinite()
        assert out_s.logits.grad.isfinite().all()
        assert value > 0.1 or z_s is z_t


def test_its_weight_warms_up() -> None:
    assert Config().schedule == Warmup(name="warmup", epochs=20)
    assert Config(schedule=None).schedule is None


def test_a_teacher_is_needed(scene: Any) -> None:
    with pytest.raises(OtkdError, match="dkd compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))
