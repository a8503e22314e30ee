"""What every solver of `otkd/ot/` has to keep; a new file is tested without being named here."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from otkd.core import plugins
from otkd.core.config import SolverConfig
from otkd.core.errors import OtkdError
from otkd.ot.clouds import Clouds, transport
from otkd.ot.result import TransportResult


@dataclass(frozen=True)
class Case:
    """Points (…, n, 3), (…, m, 3) with weights (…, n), (…, m)."""

    x: Tensor
    y: Tensor
    a: Tensor | None = None
    b: Tensor | None = None
    cost: str = "sqeuclidean"

    @property
    def clouds(self) -> Clouds:
        return Clouds(self.x, self.y, self.cost)


def problem(*lead: int, n: int = 13, m: int = 17, seed: int = 0) -> Case:
    """Two random clouds with weights, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    return Case(draw(n, 3), draw(m, 3), draw(n).softmax(-1), draw(m).softmax(-1))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every solver, where a test does not choose."""
    chosen = [mark for mark in metafunc.definition.iter_markers("parametrize") if "name" in mark.args[0]]
    if "name" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("name", plugins.names("ot"))


def those(chosen: Callable[[SolverConfig], bool]) -> pytest.MarkDecorator:
    """The solvers for which a law is meant."""
    return pytest.mark.parametrize("name", [name for name in plugins.names("ot") if chosen(config(name))])


def config(name: str, **options: object) -> SolverConfig:
    module = plugins.load("ot", name)
    settings = module.Config.model_validate(options)
    assert isinstance(settings, SolverConfig)
    return settings


def solve(name: str, case: Case, **options: object) -> TransportResult:
    result = transport(case.clouds, case.a, case.b, config(name, **options))
    assert isinstance(result, TransportResult)
    return result


def test_the_evidence_is_true(name: str) -> None:
    case = problem(2, 3)
    result = solve(name, case)
    assert result.value_B.shape == result.converged_B.shape == result.marginal_error_B.shape == (2, 3)
    assert result.converged_B.dtype == torch.bool
    assert result.converged_B.all()
    if result.potentials is not None:
        assert case.a is not None
        assert case.b is not None
        assert [part.shape for part in result.potentials] == [case.a.shape, case.b.shape]
    if result.plan_BNM is not None:
        assert result.plan_BNM.shape == (2, 3, 13, 17)
        assert not result.plan_BNM.requires_grad
        assert (result.plan_BNM >= 0).all()
        error = (result.plan_BNM.sum(-1) - case.a).abs().sum(-1) + (result.plan_BNM.sum(-2) - case.b).abs().sum(-1)
        torch.testing.assert_close(result.marginal_error_B, error, rtol=1e-6, atol=1e-12)
    if config(name).balanced:
        assert (result.marginal_error_B <= 1e-3).all()


@those(lambda config: config.balanced and config.matrices > 0)
def test_a_balanced_plan_is_not_below_the_optimum(name: str) -> None:
    """Truth: scipy's assignment solver, for equal weights on a square."""
    case = replace(problem(n=11, m=11), a=None, b=None)
    plan, cost = solve(name, case).plan_BNM, case.clouds.cross
    assert plan is not None
    rows, columns = linear_sum_assignment(cost.numpy())
    assert (plan * cost).sum() >= cost[rows, columns].mean() - 1e-4


def test_batched_equals_one_by_one(name: str) -> None:
    case = problem(2, 3)
    assert case.a is not None
    assert case.b is not None
    batched = solve(name, case)
    single = solve(name, Case(case.x[1, 2], case.y[1, 2], case.a[1, 2], case.b[1, 2]))
    torch.testing.assert_close(batched.value_B[1, 2], single.value_B, rtol=1e-3, atol=1e-4)


def test_permuting_points_permutes_the_plan(name: str) -> None:
    case = problem()
    assert case.a is not None
    assert case.b is not None
    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.randperm(13, generator=generator), torch.randperm(17, generator=generator)
    result = solve(name, case)
    permuted = solve(name, Case(case.x[rows], case.y[columns], case.a[rows], case.b[columns]))
    torch.testing.assert_close(permuted.value_B, result.value_B, rtol=1e-5, atol=1e-7)
    if result.plan_BNM is not None:
        torch.testing.assert_close(permuted.plan_BNM, result.plan_BNM[rows][:, columns], rtol=1e-5, atol=1e-7)


def test_swapping_the_sides_keeps_the_value(name: str) -> None:
    case = problem()
    other = solve(name, Case(case.y, case.x, case.b, case.a))
    torch.testing.assert_close(solve(name, case).value_B, other.value_B, rtol=1e-3, atol=1e-4)


@those(lambda config: config.takes == "cost")
def test_the_gradient_in_the_cost_is_the_plan(name: str) -> None:
    """The envelope theorem, for every solver that takes a cost, as it comes."""
    case = problem(2)
    cost = case.clouds.cross.requires_grad_()
    result = plugins.load("ot", name).solve(cost, case.a, case.b, config(name))
    result.value_B.sum().backward()
    torch.testing.assert_close(cost.grad, result.plan_BNM)


def test_the_gradient_reaches_both_clouds_and_leads_downhill(name: str) -> None:
    case = problem(2)
    y, settings = case.y.requires_grad_(), config(name)

    def value(x: Tensor) -> Tensor:  # not normalised: the gradient leaves the divisor out
        return transport(Clouds(x, y, normalize="none"), case.a, case.b, settings).value_B.sum()

    before = value(case.x.requires_grad_())
    gradients = torch.autograd.grad(before, (case.x, y))
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
    step = 1e-3 / torch.linalg.vector_norm(gradients[0])
    assert value(case.x.detach() - step * gradients[0]) < before


def test_single_precision_is_close_to_double(name: str) -> None:
    case = problem()
    assert case.a is not None
    assert case.b is not None
    single = solve(name, Case(case.x.float(), case.y.float(), case.a.float(), case.b.float()))
    assert single.value_B.dtype == torch.float32
    torch.testing.assert_close(single.value_B.double(), solve(name, case).value_B, rtol=1e-3, atol=1e-4)


def test_half_precision_is_widened_also_in_autocast(name: str) -> None:
    case = problem()
    half = Case(case.x.bfloat16(), case.y.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        result = solve(name, half)
    assert result.value_B.dtype == torch.float32
    torch.testing.assert_close(result.value_B, solve(name, Case(half.x.float(), half.y.float())).value_B)


def test_no_marginals_mean_equal_weights(name: str) -> None:
    case = problem()
    equal = replace(case, a=torch.full((13,), 1 / 13), b=torch.full((17,), 1 / 17))
    value = solve(name, replace(case, a=None, b=None)).value_B
    torch.testing.assert_close(value, solve(name, equal).value_B, rtol=1e-6, atol=1e-6)


def test_points_without_weight_take_no_part(name: str) -> None:
    case = problem()
    a, b = case.a, case.b
    assert a is not None
    assert b is not None
    a[3], b[:2] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    kept = [index for index in range(13) if index != 3]
    # distances that the normalisation sees must not depend on the points without weight
    result = transport(Clouds(case.x.requires_grad_(), case.y, normalize="none"), a, b, config(name))
    without = transport(Clouds(case.x[kept], case.y[2:], normalize="none"), a[kept], b[2:], config(name))
    torch.testing.assert_close(result.value_B, without.value_B, rtol=1e-3, atol=1e-3)
    if result.plan_BNM is not None:
        assert result.plan_BNM[3].sum() == result.plan_BNM[:, :2].sum() == 0
    assert result.potentials is None or all(part.isfinite().all() for part in result.potentials)
    (gradient,) = torch.autograd.grad(result.value_B, case.x)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[3], torch.zeros(3, dtype=torch.float64))


def test_one_point_each(name: str) -> None:
    case = Case(torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[0.0, 4.0]]))
    result = solve(name, case)
    assert result.value_B.isfinite()
    assert result.converged_B
    if config(name).balanced and result.plan_BNM is not None:
        torch.testing.assert_close(result.plan_BNM, torch.ones(1, 1))


@pytest.mark.parametrize(
    ("name", "cost"), [(name, cost) for name in plugins.names("ot") for cost in config(name).costs]
)
def test_points_that_agree_have_finite_gradients(name: str, cost: str) -> None:
    """All points of both clouds in one place; and a cloud against itself."""
    one_place = torch.ones(5, 3)
    itself = problem().x.float()
    for x, y in ((one_place, torch.ones(7, 3)), (itself, itself.clone())):
        case = Case(x.clone().requires_grad_(), y, cost=cost)
        value = solve(name, case).value_B
        value.backward()
        assert value.isfinite()
        assert case.x.grad is not None
        assert case.x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_points_that_are_not_finite_show(name: str, bad: float) -> None:
    case = problem()
    case.x[2, 1] = bad
    result = solve(name, case)
    assert not result.value_B.isfinite()
    assert not result.converged_B


@those(lambda config: config.takes == "cost")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_cost_that_is_not_finite_shows(name: str, bad: float) -> None:
    cost = problem().clouds.cross
    cost[2, 3] = bad
    result = plugins.load("ot", name).solve(cost, None, None, config(name))
    assert not result.value_B.isfinite()
    assert not result.converged_B


@those(lambda config: config.takes == "cost")
@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (torch.zeros(4), r"\(…, N, M\)"),
        (torch.zeros(0, 3), r"no dimension is 0; got \(0, 3\)"),
        (torch.zeros(0, 3, 4), r"no dimension is 0; got \(0, 3, 4\)"),
        (torch.zeros(3, 4, dtype=torch.long), "float"),
        (np.zeros((3, 4)), r"a cost has to be a torch tensor, not numpy\.ndarray"),
    ],
)
def test_what_is_no_cost_is_refused(name: str, cost: Tensor, message: str) -> None:
    with pytest.raises(OtkdError, match=message):
        plugins.load("ot", name).solve(cost, None, None, config(name))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(4) / 4, None, r"marginal a has shape \(4,\)"),
        (None, torch.tensor([0.5, 0.6, -0.1, 0.0]), "marginal b is no probability"),
        (torch.ones(3), None, "sums from 3"),
        (torch.full((3,), math.nan), None, "no probability"),
        (None, np.full(4, 0.25), r"marginal b has to be a torch tensor, not numpy\.ndarray"),
    ],
)
def test_what_are_no_weights_is_refused(name: str, a: Tensor | None, b: Tensor | None, message: str) -> None:
    case = Case(torch.randn(3, 2), torch.randn(4, 2), a, b)
    with pytest.raises(OtkdError, match=message):
        solve(name, case)


@pytest.mark.parametrize(("x", "y"), [((0, 3), (4, 3)), ((0, 2, 3), (0, 4, 3)), ((2, 4, 3), (3, 4, 3)), ((4,), (4, 3))])
def test_what_are_no_two_clouds_is_refused(name: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(OtkdError):
        solve(name, Case(torch.zeros(x), torch.zeros(y)))


@those(lambda config: not config.warm)
def test_a_start_for_a_solver_that_takes_none_is_refused(name: str) -> None:
    with pytest.raises(OtkdError, match=f"{name} takes no start"):
        transport(
            Clouds(torch.randn(5, 3), torch.randn(7, 3)), None, None, config(name), (torch.zeros(5), torch.zeros(7))
        )


def test_clouds_of_different_width_need_a_solver_for_them(name: str) -> None:
    case = Case(torch.randn(5, 3), torch.randn(7, 4))
    if config(name).any_widths:
        assert solve(name, case).value_B.isfinite()
    else:
        with pytest.raises(OtkdError, match="width"):
            solve(name, case)


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


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("normalize", ["mean", "max", "median", "none"])
def test_every_cost_that_it_claims_is_solved(name: str, cost: str, normalize: str) -> None:
    case = problem(n=5, m=7)
    settings = config(name)
    clouds = Clouds(case.x.float(), case.y.float(), cost, normalize)
    if cost in settings.costs:
        result = transport(clouds, None, None, settings)
        assert result.converged_B
        assert result.value_B.isfinite()
    else:
        with pytest.raises(OtkdError, match=f"not defined for the cost {cost}"):
            transport(clouds, None, None, settings)


def most(numbers: Any, name: str, lead: tuple[int, ...], n: int) -> float:
    """The most numbers alive in a forward and a backward pass, the cost between the clouds among them."""
    x, y = (torch.randn(*lead, n, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    transport(Clouds(x, y), None, None, config(name))  # imports
    with numbers:
        transport(Clouds(x.requires_grad_(), y), None, None, config(name)).value_B.sum().backward()
    return numbers.most


@those(lambda config: config.matrices > 0)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_no_more_matrices_are_kept_than_it_says(name: str, lead: tuple[int, ...], numbers: Any) -> None:
    """Beside the cost. Not counted: what POT keeps for itself."""
    n = 160
    matrices = most(numbers, name, lead, n) / (math.prod(lead) * n * n)
    assert 1 < matrices < 1 + config(name).matrices + 0.3


@those(lambda config: config.matrices == 0)
def test_without_a_matrix_memory_grows_with_the_points(name: str, numbers: Any) -> None:
    half = most(numbers, name, (), 512)
    assert half < most(numbers, name, (), 1024) < 2.5 * half


@those(lambda config: "iterations" in type(config).model_fields)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_given_number_of_iterations_is_run_without_a_look(name: str, lead: tuple[int, ...], no_waiting: Any) -> None:
    case = problem(*lead)
    clouds = Clouds(case.x.requires_grad_(), case.y)
    with no_waiting:
        result = transport(clouds, None, None, config(name, iterations=23))
        result.value_B.sum().backward()
    assert result.n_iters == 23
    with pytest.raises(AssertionError), no_waiting:  # the above can fail
        result.value_B.sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@those(lambda config: not config.waits)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_nothing_waits_for_a_gpu(name: str, lead: tuple[int, ...]) -> None:
    case = problem(*lead)
    x, y = case.x.float().cuda().requires_grad_(), case.y.float().cuda()

    def step() -> TransportResult:
        result = transport(Clouds(x, y), None, None, config(name))
        result.value_B.sum().backward()
        return result

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    truth = transport(Clouds(case.x.float(), case.y.float()), None, None, config(name)).value_B
    torch.testing.assert_close(result.value_B.detach().cpu(), truth, rtol=2e-3, atol=2e-3)
