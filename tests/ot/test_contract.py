"""What every solver of `otkd/ot/` has to keep; a new file is tested without being named here."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from otkd.core import plugins
from otkd.core.errors import OtkdError
from otkd.ot.cost import cosine, normalized, sqeuclidean
from otkd.ot.result import TransportResult


def problem(*lead: int, n: int = 13, m: int = 17, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised cost (…, n, m) and weighted marginals (…, n), (…, m) in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    cost = normalized(sqeuclidean(draw(n, 3), draw(m, 3)), "mean")
    return cost, draw(n).softmax(-1), draw(m).softmax(-1)


@pytest.fixture(params=plugins.names("ot"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def solve(
    name: str, cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, **options: object
) -> TransportResult:
    module = plugins.load("ot", name)
    result = module.solve(cost, a, b, module.Config.model_validate(options))
    assert isinstance(result, TransportResult)
    return result


def test_marginals_are_met_and_the_evidence_is_true(name: str) -> None:
    cost, a, b = problem(2, 3)
    result = solve(name, cost, a, b)
    assert result.plan_BNM is not None
    assert result.plan_BNM.shape == cost.shape
    assert result.value_B.shape == result.converged_B.shape == result.marginal_error_B.shape == (2, 3)
    assert (result.plan_BNM >= 0).all()
    error = (result.plan_BNM.sum(-1) - a).abs().sum(-1) + (result.plan_BNM.sum(-2) - b).abs().sum(-1)
    torch.testing.assert_close(result.marginal_error_B, error, rtol=1e-6, atol=1e-12)
    assert result.converged_B.dtype == torch.bool
    assert result.converged_B.all()
    assert (error <= 1e-3).all()
    if result.potentials is not None:
        assert [part.shape for part in result.potentials] == [a.shape, b.shape]


def test_the_plan_is_not_below_the_optimum(name: str) -> None:
    """Truth: scipy's assignment solver, for equal weights on a square."""
    cost, _, _ = problem(n=11, m=11)
    plan = solve(name, cost).plan_BNM
    assert plan is not None
    rows, columns = linear_sum_assignment(cost.numpy())
    assert (plan * cost).sum() >= cost[rows, columns].mean() - 1e-4


def test_batched_equals_one_by_one(name: str) -> None:
    cost, a, b = problem(2, 3)
    batched, single = solve(name, cost, a, b), solve(name, cost[1, 2], a[1, 2], b[1, 2])
    torch.testing.assert_close(batched.value_B[1, 2], single.value_B, rtol=1e-3, atol=1e-4)


def test_permuting_points_permutes_the_plan(name: str) -> None:
    cost, a, b = problem()
    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.randperm(13, generator=generator), torch.randperm(17, generator=generator)
    plan, permuted = solve(name, cost, a, b).plan_BNM, solve(name, cost[rows][:, columns], a[rows], b[columns]).plan_BNM
    assert plan is not None
    torch.testing.assert_close(permuted, plan[rows][:, columns], rtol=1e-6, atol=1e-9)


def test_swapping_the_sides_transposes(name: str) -> None:
    cost, a, b = problem()
    one, other = solve(name, cost, a, b), solve(name, cost.mT, b, a)
    torch.testing.assert_close(one.value_B, other.value_B, rtol=1e-3, atol=1e-4)


def test_the_gradient_is_the_plan(name: str) -> None:
    cost, a, b = problem(2)
    result = solve(name, cost.requires_grad_(), a, b)
    result.value_B.sum().backward()
    torch.testing.assert_close(cost.grad, result.plan_BNM)


def test_single_precision_is_close_to_double(name: str) -> None:
    cost, a, b = problem()
    double, single = solve(name, cost, a, b), solve(name, cost.float(), a.float(), b.float())
    assert single.value_B.dtype == torch.float32
    torch.testing.assert_close(single.value_B.double(), double.value_B, rtol=1e-3, atol=1e-4)


def test_half_precision_is_widened_also_in_autocast(name: str) -> None:
    half = problem()[0].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = solve(name, half)
    assert result.value_B.dtype == torch.float32
    torch.testing.assert_close(result.value_B, solve(name, half.float()).value_B)


def test_no_marginals_mean_equal_weights(name: str) -> None:
    cost, _, _ = problem()
    equal = solve(name, cost, torch.full((13,), 1 / 13), torch.full((17,), 1 / 17))
    torch.testing.assert_close(solve(name, cost).value_B, equal.value_B, rtol=1e-6, atol=1e-6)


def test_points_without_weight_take_no_part(name: str) -> None:
    cost, a, b = problem()
    a[3], b[:2] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    result = solve(name, cost.requires_grad_(), a, b)
    kept = [index for index in range(13) if index != 3]
    assert result.plan_BNM is not None
    assert result.potentials is None or all(part.isfinite().all() for part in result.potentials)
    assert result.plan_BNM[3].sum() == result.plan_BNM[:, :2].sum() == 0
    without = solve(name, cost.detach()[kept][:, 2:], a[kept], b[2:])
    torch.testing.assert_close(result.value_B, without.value_B, rtol=1e-3, atol=1e-4)
    assert torch.autograd.grad(result.value_B, cost)[0].isfinite().all()


def test_one_point_each(name: str) -> None:
    result = solve(name, torch.tensor([[2.5]]))
    assert result.value_B.item() == pytest.approx(2.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_cost_that_is_not_finite_shows(name: str, bad: float) -> None:
    cost, _, _ = problem()
    cost[2, 3] = bad
    result = solve(name, cost)
    assert not result.value_B.isfinite()
    assert not result.converged_B


def test_equal_costs_give_the_product_cost(name: str) -> None:
    _, a, b = problem()
    assert solve(name, torch.full((13, 17), 0.7, dtype=torch.float64), a, b).value_B.item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("cost", "a", "b", "message"),
    [
        (torch.zeros(4), None, None, r"\(…, N, M\)"),
        (torch.zeros(0, 3), None, None, r"N, M ≥ 1"),
        (torch.zeros(3, 4, dtype=torch.long), None, None, "float"),
        (torch.zeros(3, 4), torch.ones(4) / 4, None, r"marginal a has shape \(4,\)"),
        (torch.zeros(3, 4), None, torch.tensor([0.5, 0.6, -0.1, 0.0]), "marginal b is no probability"),
        (torch.zeros(3, 4), torch.ones(3), None, "sums from 3"),
        (torch.zeros(3, 4), torch.full((3,), math.nan), None, "no probability"),
    ],
)
def test_what_is_no_transport_problem_is_refused(
    name: str, cost: Tensor, a: Tensor | None, b: Tensor | None, message: str
) -> None:
    with pytest.raises(OtkdError, match=message):
        solve(name, cost, a, b)


def test_configuration_survives_a_round_trip(name: str) -> None:
    module = plugins.load("ot", name)
    dumped = plugins.configure("ot", name, {}).model_dump(mode="json")
    assert module.Config.model_validate(dumped).model_dump(mode="json") == dumped
    assert dumped["name"] == name


def test_head_has_the_schema_of_the_file(name: str) -> None:
    schemas = [module.Config.model_json_schema() for module in (plugins.head("ot", name), plugins.load("ot", name))]
    assert schemas[0] == schemas[1]


def test_heads_need_no_torch_and_explain_every_setting() -> None:
    """In a process of its own: here torch has long been imported."""
    code = """
import sys
from otkd.core import plugins
for name in plugins.names("ot"):
    schema = plugins.head("ot", name).Config.model_json_schema()
    assert all("description" in field for field in schema["properties"].values()), name
assert not {"torch", "ot"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_cosine_costs_are_solved_too(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    cost = cosine(torch.randn(5, 4, generator=generator), torch.randn(7, 4, generator=generator))
    assert solve(name, cost).converged_B
