"""SinKD against its definition in the probability domain, entry by entry, and against POT."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax


def cost(scene: Any, temperature: float = 2.0) -> np.ndarray:
    s, t = (softmax(out.logits.double().numpy() / temperature, 1) for out in (scene.out_s, scene.out_t))
    table = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            table[i, j] = abs(s[i] - t[j]).sum()
    np.testing.assert_allclose(table, cdist(s, t, "cityblock"))
    return table


def normalised(table: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    plan = np.exp(-table / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return plan


def double(scene: Any, options: dict[str, Any]) -> Any:
    out_s, out_t = (scene.convert(out, torch.Tensor.double) for out in (scene.out_s, scene.out_t))
    return scene.loss("sinkd", options)(out_s, out_t, scene.batch)


@pytest.mark.parametrize(("epsilon", "iterations", "temperature"), [(0.1, 20, 2.0), (0.5, 3, 4.0), (0.03, 1, 1.0)])
def test_equals_the_definition(scene: Any, epsilon: float, iterations: int, temperature: float) -> None:
    options = {"epsilon": epsilon, "iterations": iterations, "temperature": temperature}
    table = cost(scene, temperature)
    plan = normalised(table, epsilon, iterations)
    result = double(scene, options)
    assert result.value.item() == pytest.approx((plan * table).sum(), rel=1e-10)
    assert result.parts["alignment"].item() == pytest.approx(np.trace(plan) / 5, rel=1e-10)
    assert result.parts["marginal_error"].item() == pytest.approx(abs(plan.sum(1) - 1).mean(), abs=1e-10)
    mean = double(scene, options | {"reduction": "mean"})
    assert mean.value.item() == pytest.approx(result.value.item() / 5)


def test_many_iterations_are_pots_plan(scene: Any) -> None:
    table = cost(scene)
    plan = pot.sinkhorn(np.full(5, 0.2), np.full(5, 0.2), table, 0.1, stopThr=1e-13, numItermax=100_000)
    result = double(scene, {"iterations": 3000, "reduction": "mean"})
    assert result.value.item() == pytest.approx((plan * table).sum(), rel=1e-8)
    assert result.parts["marginal_error"] < 1e-10


@pytest.mark.parametrize("gradient", ["unrolled", "envelope"])
def test_gradient(scene: Any, gradient: str) -> None:
    """Unrolled against finite differences; envelope against those at the fixed plan."""
    loss = scene.loss("sinkd", {"gradient": gradient, "iterations": 5})
    plan = torch.from_numpy(normalised(cost(scene), 0.1, 5))
    out_s, out_t = (scene.convert(out, torch.Tensor.double) for out in (scene.out_s, scene.out_t))

    def value(logits: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = loss(out_s._replace(logits=logits), out_t, scene.batch).value
        return result

    def at_fixed_plan(logits: torch.Tensor) -> torch.Tensor:
        p_s, p_t = (torch.softmax(part / 2, -1) for part in (logits, out_t.logits))
        return (plan * (p_s[:, None] - p_t[None]).abs().sum(-1)).sum()

    logits = out_s.logits.clone().requires_grad_()
    (mine,) = torch.autograd.grad(value(logits), logits)
    (fixed,) = torch.autograd.grad(at_fixed_plan(logits), logits)
    if gradient == "unrolled":
        assert torch.autograd.gradcheck(value, (logits,))
        assert not torch.allclose(mine, fixed, rtol=1e-2)
    else:
        torch.testing.assert_close(mine, fixed)


def test_a_small_epsilon_does_not_underflow(scene: Any) -> None:
    """The kernel itself is 0 in single precision; the plan tends to the best assignment."""
    table = cost(scene)
    plan = pot.emd(np.full(5, 0.2), np.full(5, 0.2), table)
    value = scene.value("sinkd", {"epsilon": 1e-3, "iterations": 2000, "reduction": "mean"}).value.item()
    assert value == pytest.approx((plan * table).sum(), rel=2e-2)
    assert not np.exp(-table.astype(np.float32) / np.float32(1e-3)).any()


def test_one_image(scene: Any) -> None:
    out_s, out_t = (scene.convert(out, lambda tensor: tensor[:1]) for out in (scene.out_s, scene.out_t))
    value = scene.loss("sinkd")(out_s, out_t, scene.batch).value.item()
    assert value == pytest.approx(cost(scene)[0, 0], rel=1e-5)
