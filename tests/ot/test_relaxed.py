"""The relaxed distance against loops, exact transport and a value worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otkd.ot import exact
from otkd.ot.relaxed import Config, solve


def problem(n: int = 13, m: int = 17, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw(n, m), draw(n).softmax(-1), draw(m).softmax(-1)


def by_loops(cost: Tensor, a: Tensor, b: Tensor) -> float:
    n, m = cost.shape
    rows = sum(a[i].item() * min(cost[i, j].item() for j in range(m) if b[j] > 0) for i in range(n))
    columns = sum(b[j].item() * min(cost[i, j].item() for i in range(n) if a[i] > 0) for j in range(m))
    return max(rows, columns)


def test_by_hand() -> None:
    """Rows cost 1/3 · 1 + 2/3 · 2 = 5/3, columns 1/2 · 1 + 1/2 · 4 = 5/2: the columns' plan."""
    cost, a = torch.tensor([[1.0, 5.0], [2.0, 4.0]], dtype=torch.float64), torch.tensor([1 / 3, 2 / 3]).double()
    result = solve(cost, a, None, Config())
    assert result.value_B.item() == pytest.approx(2.5)
    assert result.plan_BNM.tolist() == [[0.5, 0], [0, 0.5]]
    assert result.marginal_error_B.item() == pytest.approx(1 / 3, abs=1e-6)


def test_the_nearest_have_equal_shares() -> None:
    cost = torch.tensor([[1.0, 1.0, 3.0]])
    result = solve(cost, None, torch.tensor([0.2, 0.3, 0.5]), Config())
    torch.testing.assert_close(result.plan_BNM, torch.tensor([[0.2, 0.3, 0.5]]))  # 2 by columns, 1 by rows
    rows = solve(torch.tensor([[1.0, 1.0, 3.0], [5, 5, 5]]), None, torch.tensor([0.9, 0.1, 0]), Config())
    torch.testing.assert_close(rows.plan_BNM, torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0]]))


def test_points_without_weight_are_nobodys_nearest() -> None:
    cost, a, b = problem()
    a[4], b[2:5] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    cost[:, 3] = 0
    result = solve(cost, a, b, Config())
    assert result.value_B.item() == pytest.approx(by_loops(cost, a, b))
    assert result.plan_BNM[:, 3].sum() == 0


@pytest.mark.parametrize("more", [True, False])
def test_gradient_equals_finite_differences(more: bool) -> None:
    """On either side's plan."""
    cost = problem(5, 7)[0]
    cost = cost if more else cost.mT.contiguous()
    assert torch.autograd.gradcheck(lambda c: solve(c, None, None, Config()).value_B, cost.requires_grad_())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 10_000), shift=st.sampled_from([0.0, -1.0]))
def test_properties(n: int, m: int, seed: int, shift: float) -> None:
    cost, a, b = problem(n, m, seed)
    cost = cost + shift
    result = solve(cost, a, b, Config())
    plan = result.plan_BNM
    assert plan is not None
    assert result.potentials is not None
    assert result.value_B.item() == pytest.approx(by_loops(cost, a, b))
    assert result.value_B <= exact.solve(cost, a, b, exact.Config()).value_B + 1e-12
    one_side = min((plan.sum(-1) - a).abs().sum(), (plan.sum(-2) - b).abs().sum())
    assert one_side < 1e-12
    f, g = result.potentials
    assert (cost - f[:, None] - g).min() >= 0
    torch.testing.assert_close((a * f).sum() + (b * g).sum(), result.value_B)
    torch.testing.assert_close(solve(cost.mT, b, a, Config()).value_B, result.value_B)
    torch.testing.assert_close(solve(3 * cost + 1, a, b, Config()).value_B, 3 * result.value_B + 1)
