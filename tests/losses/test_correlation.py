"""CC's two forms against plain loops, the kernel also against torchdistill and the Gaussian that it approaches."""

from __future__ import annotations

from math import exp, factorial
from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import CCKDLoss

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.correlation import Config, Loss


def embeddings(scene: Any) -> list[Any]:
    return [out.embedding.double().numpy() for out in (scene.out_s, scene.out_t)]


def kernel(x: Any, gamma: float, order: int, unit: bool) -> Any:
    x = np.array([row / np.sqrt((row**2).sum()) for row in x]) if unit else x
    return np.array(
        [
            [sum((2 * gamma) ** p / factorial(p) * (u @ v) ** p for p in range(order + 1)) / exp(2 * gamma) for v in x]
            for u in x
        ]
    )


def test_pairs_equal_loops(scene: Any) -> None:
    loss = scene.loss("correlation", {"width": 11})
    u, v = (
        np.array([layer.weight.double().detach().numpy() @ x + layer.bias.double().detach().numpy() for x in rows])
        for layer, rows in zip((loss.map_s, loss.map_t), embeddings(scene), strict=True)
    )
    gap = np.abs(u - v)
    expected = sum(gap[b, d] * gap[b + 1, d] for b in range(4) for d in range(11)) / 4
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.7, 3)])
def test_gaussian_equals_loops(scene: Any, gamma: float, order: int, unit: bool, squared: bool) -> None:
    s, t = (kernel(x, gamma, order, unit) for x in embeddings(scene))
    total = ((s - t) ** 2).sum()
    options = {"variant": "gaussian", "gamma": gamma, "order": order, "unit": unit, "squared": squared}
    expected = (total if squared else np.sqrt(total)) / 25
    assert scene.value("correlation", options).value.item() == pytest.approx(expected, rel=1e-5)


def test_gaussian_equals_torchdistill(scene: Any) -> None:
    said = CCKDLoss("x", "x", {"type": "gaussian", "gamma": 0.4, "max_p": 2}, "batchmean")
    expected = said({"x": {"output": scene.out_s.embedding}}, {"x": {"output": scene.out_t.embedding}})
    value = scene.value("correlation", {"variant": "gaussian", "unit": False, "squared": False}).value
    torch.testing.assert_close(value, expected)


def test_the_expansion_approaches_the_gaussian(scene: Any) -> None:
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in embeddings(scene))
    k_s, k_t = (np.array([[exp(-0.4 * ((u - v) ** 2).sum()) for v in x] for u in x]) for x in (s, t))
    value = scene.value("correlation", {"variant": "gaussian", "order": 12}).value.item()
    assert value == pytest.approx(((k_s - k_t) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_gaussian_needs_no_order_and_no_maps(scene: Any, squared: bool) -> None:
    loss = scene.loss("correlation", {"variant": "gaussian", "squared": squared})
    assert not loss.ordered
    assert scene.loss("correlation").ordered
    assert not list(loss.parameters())
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = [scene.convert(out, lambda t: t[order]) for out in (scene.out_s, scene.out_t)]
    torch.testing.assert_close(loss(*shuffled, scene.batch).value, loss(scene.out_s, scene.out_t, scene.batch).value)


@pytest.mark.parametrize("squared", [True, False])
def test_gaussian_at_the_teacher_and_at_zero(scene: Any, squared: bool) -> None:
    loss = scene.loss("correlation", {"variant": "gaussian", "squared": squared})
    for embedding in (scene.out_t.embedding.clone(), torch.zeros(5, 13)):
        out_s = scene.out_s._replace(embedding=embedding.requires_grad_())
        value = loss(out_s, scene.out_t, scene.batch).value
        value.backward()
        assert value.isfinite()
        assert embedding.grad.isfinite().all()


def test_a_teacher_is_needed(scene: Any) -> None:
    with pytest.raises(OtkdError, match="correlation compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))
