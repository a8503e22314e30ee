"""The Sinkhorn divergence against POT, geomloss, a slow implementation, finite differences and its properties."""

from __future__ import annotations

import math
from typing import Any

import geomloss
import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otkd.ot.clouds import Clouds
from otkd.ot.divergence import Config, solve


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(n: int = 13, m: int = 17, d: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(n, d), draw(m, d, seed=1) + 0.3, draw(n, seed=2).softmax(-1), draw(m, seed=3).softmax(-1)


def tight(epsilon: float, **options: object) -> Config:
    return Config.model_validate({"epsilon": epsilon, "tolerance": 1e-10, "max_iters": 5000, **options})


def entropic(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, scale: float) -> float:
    """POT's value with ε KL(P | a⊗b)."""
    cost = torch.cdist(x, y).square() / scale
    arrays = a.numpy(), b.numpy(), cost.numpy()
    return float(pot.solve(arrays[2], *arrays[:2], reg=epsilon, reg_type="KL", max_iter=100_000, tol=1e-9).value)


@pytest.mark.parametrize("normalize", ["mean", "none"])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_value_equals_pots_three(epsilon: float, normalize: str) -> None:
    x, y, a, b = scene()
    clouds = Clouds(x, y, normalize=normalize)
    scale = clouds.scale.item()
    epsilon *= Clouds(x, y).scale.item() / scale
    truth = entropic(x, y, a, b, epsilon, scale)
    truth -= (entropic(x, x, a, a, epsilon, scale) + entropic(y, y, b, b, epsilon, scale)) / 2
    result = solve(clouds, a, b, tight(epsilon))
    assert result.converged_B
    np.testing.assert_allclose(result.value_B, truth, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_value_and_gradient_equal_geomloss(epsilon: float) -> None:
    """Its cost is |x − y|²/2, so that it has half of our value at half of our ε."""
    x, y, a, b = scene()
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=math.sqrt(epsilon / 2), scaling=0.995, backend="tensorized")
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    truth = 2 * loss(a, theirs, b, y)
    value = solve(Clouds(ours, y, normalize="none"), a, b, tight(epsilon)).value_B
    torch.testing.assert_close(value, truth, rtol=1e-3, atol=1e-6)  # theirs has not converged quite
    gradients = torch.autograd.grad(value, ours)[0], torch.autograd.grad(truth, theirs)[0]
    torch.testing.assert_close(*gradients, rtol=0, atol=0.03)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("both", [True, False])
def test_the_gradient_in_the_points_equals_finite_differences(cost: str, epsilon: float, both: bool) -> None:
    x, y, a, b = scene(5, 7)
    x.requires_grad_()
    inputs = [x, y.requires_grad_()] if both else [x]

    def value(x: Tensor, y: Tensor = y) -> Tensor:
        return solve(Clouds(x, y, cost, normalize="none"), a, b, tight(epsilon, tolerance=1e-13)).value_B

    assert torch.autograd.gradcheck(value, inputs, atol=1e-6)


def test_the_gradient_passes_the_scale_and_the_batch() -> None:
    x, y, a, b = scene()
    x.requires_grad_()
    clouds = Clouds(torch.stack([x, 2 * x]), torch.stack([y, y]))
    together = torch.autograd.grad(solve(clouds, a, b, tight(0.05)).value_B.sum(), x)[0]
    alone = torch.zeros_like(x)
    for factor in (1, 2):
        scaled = Clouds(factor * x, y)
        root = scaled.scale.squeeze().sqrt()
        value = solve(Clouds(factor * x / root, y / root, normalize="none"), a, b, tight(0.05)).value_B
        alone = alone + torch.autograd.grad(value, x)[0]
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_one_cloud_against_itself_is_nothing() -> None:
    x = draw(13, 3).requires_grad_()
    value = solve(Clouds(x, x), None, None, tight(0.05)).value_B
    assert abs(value) < 1e-9
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(gradient, torch.zeros_like(x), rtol=0, atol=1e-8)


def test_the_order_of_points_is_no_difference() -> None:
    x, _, a, _ = scene()
    order = torch.randperm(13, generator=torch.Generator().manual_seed(4))
    assert solve(Clouds(x, x[order]), a, a[order], tight(0.05)).value_B.abs() < 1e-9


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    epsilon=st.floats(5e-3, 2.0),
    seed=st.integers(0, 10_000),
    shift=st.floats(-5, 5),
    cost=st.sampled_from(["sqeuclidean", "euclidean"]),
)
def test_properties(n: int, m: int, epsilon: float, seed: int, shift: float, cost: str) -> None:
    """At least 0, symmetric, and the same wherever both clouds stand together."""
    x, y = draw(n, 2, seed=seed), draw(m, 2, seed=seed + 1)
    a, b = draw(n, seed=seed + 2).softmax(-1), draw(m, seed=seed + 3).softmax(-1)
    config = tight(epsilon, tolerance=1e-9)
    result = solve(Clouds(x, y, cost), a, b, config)
    assert result.converged_B
    assert result.value_B > -1e-8
    torch.testing.assert_close(solve(Clouds(y, x, cost), b, a, config).value_B, result.value_B, rtol=1e-6, atol=1e-7)
    moved = solve(Clouds(x + shift, y + shift, cost), a, b, config).value_B
    torch.testing.assert_close(moved, result.value_B, rtol=1e-6, atol=1e-7)


def test_two_points_by_hand() -> None:
    """One point against one: all plans are certain, so S is the cost."""
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    value = solve(Clouds(x, y, normalize="none"), None, None, Config()).value_B
    torch.testing.assert_close(value, torch.tensor(25.0))


def test_it_does_not_shrink_where_plain_transport_does() -> None:
    """The entropic cost falls when x is drawn towards its mean; the divergence between equal clouds rises."""
    x = draw(31, 2)
    values = [solve(Clouds(s * x, x, normalize="none"), None, None, tight(1.0)).value_B for s in (1.0, 0.8)]
    assert values[1] > values[0] + 1e-3


def test_all_three_problems_have_to_converge() -> None:
    x, y, a, b = scene()
    result = solve(Clouds(x, y), a, b, tight(0.05, max_iters=1))
    assert not result.converged_B
    near = solve(Clouds(x, y + 100, normalize="none"), a, b, tight(1e3, tolerance=1e-6, max_iters=2))
    assert near.n_iters == 2
    spread = Clouds(torch.tensor([[0.0], [1.0], [1.5]]).double(), torch.full((1, 1), 9.0).double(), normalize="none")
    lone = solve(spread, None, None, tight(1.0, max_iters=2))
    assert lone.marginal_error_B < 1e-10  # one target: the cross problem is solved at once
    assert not lone.converged_B


@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_given_number_of_iterations_never_waits(lead: tuple[int, ...], no_waiting: Any) -> None:
    x, y = draw(*lead, 13, 3).requires_grad_(), draw(*lead, 17, 3, seed=1)
    with no_waiting:
        result = solve(Clouds(x, y), None, None, Config(iterations=40))
        result.value_B.sum().backward()
    assert result.n_iters == 40
    assert result.converged_B.all()


@pytest.mark.parametrize("iterations", [None, 200])
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_clouds_with_a_zero_vector_are_at_no_divergence_from_themselves(epsilon: float, iterations: int | None) -> None:
    """Under cosine it is at cost 1 from itself, which here is many ε."""
    x = 1 + draw(2, 16, 8).abs() / 2
    x[0, 5] = x[1, 2:4] = 0
    result = solve(Clouds(x, x.clone(), cost="cosine"), None, None, Config(epsilon=epsilon, iterations=iterations))
    assert result.converged_B.all()
    assert result.value_B.abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iterations", [None, 100])
def test_a_point_without_weight_may_be_far_away(iterations: int | None, dtype: torch.dtype) -> None:
    x = 0.3 * draw(16, 4).to(dtype)
    y, keep = x.roll(1, 0) + 0.1, torch.arange(16) != 3
    x[3] = y[4] = 10
    a, config = keep / keep.sum(), Config(iterations=iterations)
    result = solve(Clouds(x, y, normalize="none"), a, a.roll(1), config)
    without = solve(Clouds(x[keep], y[keep.roll(1)], normalize="none"), None, None, config)
    assert result.converged_B
    torch.testing.assert_close(result.value_B, without.value_B, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-4, 0.01])
def test_single_precision_is_close_to_double(epsilon: float) -> None:
    x, y = draw(2, 61, 8), draw(2, 67, 8, seed=1)
    points = x.float().requires_grad_()
    result = solve(Clouds(points, y.float()), None, None, Config(epsilon=epsilon))
    truth = solve(Clouds(x, y), None, None, tight(epsilon, tolerance=1e-7)).value_B
    assert result.converged_B.all()
    torch.testing.assert_close(result.value_B.double(), truth, rtol=1e-3, atol=1e-4)
    assert torch.autograd.grad(result.value_B.sum(), points)[0].isfinite().all()
