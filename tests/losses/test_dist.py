"""DIST against numpy's correlation coefficients and torchdistill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import DISTLoss

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.dist import Config, Loss

OPTIONS = [{}, {"beta": 2.0, "gamma": 0.5, "temperature": 4.0}]


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_loops(scene: Any, options: dict[str, float]) -> None:
    beta, gamma, temperature = (options.get(key, 1.0) for key in ("beta", "gamma", "temperature"))
    s, t = (softmax(out.logits.double().numpy() / temperature) for out in (scene.out_s, scene.out_t))
    inter = 1 - sum(np.corrcoef(s[b], t[b])[0, 1] for b in range(5)) / 5
    intra = 1 - sum(np.corrcoef(s[:, k], t[:, k])[0, 1] for k in range(7)) / 7
    result = scene.value("dist", options)
    assert result.value.item() == pytest.approx(temperature**2 * (beta * inter + gamma * intra), rel=1e-5)
    assert [result.parts[part].item() for part in ("inter", "intra")] == pytest.approx([inter, intra], rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torchdistill(scene: Any, options: dict[str, float]) -> None:
    said = DISTLoss(".", "output", ".", "output", **{"tau" if k == "temperature" else k: v for k, v in options.items()})
    expected = said({".": {"output": scene.out_s.logits}}, {".": {"output": scene.out_t.logits}})
    torch.testing.assert_close(scene.value("dist", options).value, expected, rtol=1e-4, atol=0)


def test_what_does_not_vary_correlates_with_nothing(scene: Any) -> None:
    """Equal logits, and a saturated student, which gives most classes no probability in any image."""
    for logits in (torch.zeros(5, 7), 1e4 * torch.eye(7)[torch.zeros(5, dtype=torch.int64)]):
        scene.out_s = scene.out_s._replace(logits=logits.requires_grad_())
        result = scene.value("dist")
        result.value.backward()
        assert result.parts["intra"].item() == pytest.approx(1, abs=1e-6)
        assert logits.grad.abs().max() < 100


def test_a_teacher_is_needed(scene: Any) -> None:
    with pytest.raises(OtkdError, match="dist compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))
