"""Costs against scipy's `cdist`; gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cdist

from otkd.core.errors import OtkdError
from otkd.ot import relaxed, sinkhorn
from otkd.ot.clouds import Clouds, transport
from otkd.ot.cost import COSTS, cosine, euclidean, normalized, scale_of, sqeuclidean


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_is_no_tensor_or_no_clouds_is_refused() -> None:
    with pytest.raises(OtkdError, match=r"a cloud has to be a torch tensor, not builtins\.list"):
        Clouds(torch.zeros(2, 3), [[0.0, 0.0, 0.0]])
    with pytest.raises(OtkdError, match=r"transport takes Clouds.*not Tensor"):
        transport(torch.zeros(3, 4), None, None, sinkhorn.Config())


def test_a_solver_that_gives_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaxed, "solve", lambda *_: torch.zeros(()))
    with pytest.raises(OtkdError, match=r"otkd\.ot\.relaxed\.solve gave Tensor; a solver returns a TransportResult"):
        transport(Clouds(torch.zeros(2, 3), torch.zeros(4, 3)), None, None, relaxed.Config())


@pytest.mark.parametrize("name", sorted(COSTS))
def test_equals_scipy(name: str) -> None:
    x, y = points(13, 5), points(17, 5, seed=1)
    expected = torch.from_numpy(cdist(x.numpy(), y.numpy(), name))
    torch.testing.assert_close(COSTS[name](x, y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_batched_equals_one_by_one(name: str) -> None:
    x, y = points(2, 3, 7, 5), points(2, 3, 4, 5, seed=1)
    batched = COSTS[name](x, y)
    assert batched.shape == (2, 3, 7, 4)
    torch.testing.assert_close(batched[1, 2], COSTS[name](x[1, 2], y[1, 2]))


@pytest.mark.parametrize("name", sorted(COSTS))
def test_gradient_equals_finite_differences(name: str) -> None:
    x, y = points(4, 3).requires_grad_(), points(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(COSTS[name], (x, y))


@pytest.mark.parametrize("name", sorted(COSTS))
def test_coinciding_points_have_a_finite_gradient(name: str) -> None:
    x = points(6, 3).float().requires_grad_()
    cost = COSTS[name](x, x.detach().clone())
    cost.diagonal().sum().backward()
    torch.testing.assert_close(cost.diagonal(), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, torch.zeros(6, 3), rtol=0, atol=1e-5)


def test_a_distant_cloud_keeps_its_digits() -> None:
    x, y = points(5, 3), points(6, 3, seed=1)
    near = sqeuclidean(x, y).float()
    torch.testing.assert_close(sqeuclidean((x + 4096).float(), (y + 4096).float()), near, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_single_precision_inside_autocast(name: str) -> None:
    x, y = points(13, 5).float(), points(17, 5, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside, from_half = COSTS[name](x, y), COSTS[name](x.bfloat16(), y.bfloat16())
    assert inside.dtype == from_half.dtype == torch.float32
    torch.testing.assert_close(inside, COSTS[name](x, y))
    torch.testing.assert_close(from_half, COSTS[name](x.bfloat16().float(), y.bfloat16().float()))


def test_normalisation_divides_by_the_statistic_without_its_gradient() -> None:
    cost = sqeuclidean(points(2, 3, 4), points(2, 5, 4, seed=1)).requires_grad_()
    assert normalized(cost, "none") is cost
    torch.testing.assert_close(normalized(cost, "mean").mean((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(normalized(cost, "max").amax((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(
        normalized(cost, "median").flatten(1).median(1).values, torch.ones(2, dtype=torch.float64)
    )
    (gradient,) = torch.autograd.grad(normalized(cost, "mean").sum(), cost)
    torch.testing.assert_close(gradient, (1 / cost.mean((1, 2), keepdim=True)).expand_as(cost))


@pytest.mark.parametrize("by", ["mean", "max", "median", "none"])
def test_a_cost_of_zero_stays_zero(by: str) -> None:
    torch.testing.assert_close(normalized(torch.zeros(3, 4), by), torch.zeros(3, 4))


def test_unknown_normalisation_names_the_known() -> None:
    with pytest.raises(OtkdError, match=r"mean, max, median, none\. Did you mean 'mean'"):
        normalized(torch.ones(2, 2), "meen")


@pytest.mark.parametrize(("x", "y"), [((3, 4), (5, 6)), ((2, 3, 4), (5, 4)), ((4,), (4,))])
def test_shapes_that_do_not_fit_are_refused(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    for cost in (sqeuclidean, euclidean, cosine):
        with pytest.raises(OtkdError, match="cannot be compared"):
            cost(torch.zeros(x), torch.zeros(y))


def test_a_zero_vector_has_no_gradient_under_cosine() -> None:
    x = torch.zeros(3, 4)
    x[1] = 2.0
    x.requires_grad_()
    cost = cosine(x, torch.ones(5, 4))
    torch.testing.assert_close(cost, torch.tensor([[1.0], [0.0], [1.0]]).expand(3, 5), atol=1e-6, rtol=0)
    (cost * torch.rand(3, 5)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0].abs().sum() == x.grad[2].abs().sum() == 0


@pytest.mark.parametrize("name", sorted(COSTS))
def test_costs_that_no_memory_holds_are_refused_before_they_are_made(name: str) -> None:
    many = torch.zeros(1, 1).expand(10**7, 3)
    with pytest.raises(OtkdError, match=r"100,000,000,000,000 entries.*GiB.*smaller batch.*sliced"):
        COSTS[name](many, many)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_points_that_are_not_numbers_have_costs_that_are_not(name: str) -> None:
    x = points(3, 4)
    x[1, 2] = torch.nan
    assert COSTS[name](x, points(5, 4, seed=1))[1].isnan().all()


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("normalize", ["mean", "max", "median", "none"])
@pytest.mark.parametrize("cost", list(COSTS))
def test_the_scale_of_clouds_is_that_of_their_costs(cost: str, normalize: str, offset: float) -> None:
    """Where it comes without a matrix, too; also far from the origin."""
    generator = torch.Generator().manual_seed(0)
    x, y = (offset + torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64) for n in (13, 17))
    clouds = Clouds(x, y, cost, normalize)
    truth = (
        torch.ones(2, 3, 1, 1, dtype=torch.float64) if normalize == "none" else scale_of(clouds.ground(x, y), normalize)
    )
    torch.testing.assert_close(clouds.scale, truth, rtol=1e-9, atol=1e-12)
