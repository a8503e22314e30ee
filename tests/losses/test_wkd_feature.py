"""WKD-F cell by cell, channel by channel; with one cell and equal weights against POT's Gaussian distance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot as pot
import pytest
import torch

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.wkd_feature import Config, Loss
from otkd.losses.wkd_feature import cell_gaussians as of_cells
from otkd.losses.wkd_feature import cells as cut


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cell_gaussians(map_BCHW: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    return of_cells(map_BCHW, cut(*map_BCHW.shape[2:], grid).to(map_BCHW))


def cells(map_HW: torch.Tensor, grid: int) -> list[torch.Tensor]:
    (height, width), found = map_HW.shape, []
    for i in range(grid):
        for j in range(grid):
            rows = slice(math.floor(i * height / grid), math.ceil((i + 1) * height / grid))
            columns = slice(math.floor(j * width / grid), math.ceil((j + 1) * width / grid))
            found.append(map_HW[rows, columns].flatten())
    return found


def gaussian(cell_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    variance = cell_P.var() if len(cell_P) > 1 else torch.zeros(())
    return cell_P.mean(), (variance + 1e-5).sqrt()


def as_published(map_s: torch.Tensor, map_t: torch.Tensor, grid: int, ratio: float) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for image_s, image_t in zip(map_s, map_t, strict=True):
        for channel_s, channel_t in zip(image_s, image_t, strict=True):
            for cell_s, cell_t in zip(cells(channel_s, grid), cells(channel_t, grid), strict=True):
                (mean_s, std_s), (mean_t, std_t) = gaussian(cell_s), gaussian(cell_t)
                total = total + ratio * (mean_s - mean_t) ** 2 + (std_s - std_t) ** 2
    return total / (len(map_s) * grid**2)


def project(loss: Loss, map_s: torch.Tensor, relu: bool = True) -> torch.Tensor:
    """1 × 1 convolution, batch norm, ReLU from their definitions."""
    x = torch.einsum("oc,bchw->bohw", loss.projector[0].weight[:, :, 0, 0], map_s)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x.clamp_min(0) if relu else x


@pytest.mark.parametrize("options", [{}, {"mean_weight": 1.0, "grid": 2}, {"layer": 1, "grid": 4}, {"relu": False}])
def test_equals_the_definition(scene: Any, options: dict[str, Any]) -> None:
    """Maps of different size: the student's last is 3 × 4, the teacher's 3 × 2."""
    loss, layer = scene.loss("wkd_feature", options).double(), options.get("layer", 3)
    out_s, out_t = (scene.convert(out, torch.Tensor.double) for out in (scene.out_s, scene.out_t))
    map_s = project(loss, out_s.layer(layer), options.get("relu", True))
    expected = as_published(map_s, out_t.layer(layer), options.get("grid", 1), options.get("mean_weight", 4.0))
    result = loss(out_s, out_t, scene.batch)
    torch.testing.assert_close(result.value, expected, rtol=1e-10, atol=0)
    ratio = options.get("mean_weight", 4.0)
    torch.testing.assert_close(result.value, ratio * result.parts["mean"] + result.parts["std"])


@pytest.mark.parametrize("grid", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(5, 7), (8, 8), (11, 6)])
def test_cells_are_those_of_the_definition(grid: int, size: tuple[int, int]) -> None:
    map_BCHW = 100 + draw(2, 3, *size)
    means, stds = cell_gaussians(map_BCHW, grid)
    for b in range(2):
        for c in range(3):
            expected = [gaussian(cell) for cell in cells(map_BCHW[b, c], grid)]
            torch.testing.assert_close(means[b, c], torch.stack([mean for mean, _ in expected]))
            torch.testing.assert_close(stds[b, c], torch.stack([std for _, std in expected]))


def test_one_cell_is_the_wasserstein_distance_of_gaussians() -> None:
    map_s, map_t = draw(1, 4, 5, 7), 2 * draw(1, 4, 6, 3, seed=1) + 1
    mean_s, std_s, mean_t, std_t = (
        part[0, :, 0].numpy() for map_BCHW in (map_s, map_t) for part in cell_gaussians(map_BCHW, 1)
    )
    mine = ((mean_s - mean_t) ** 2 + (std_s - std_t) ** 2).sum()
    theirs = pot.gaussian.bures_wasserstein_distance(mean_s, mean_t, np.diag(std_s**2), np.diag(std_t**2))
    assert mine == pytest.approx(theirs**2, rel=1e-8)


def test_gradient_equals_finite_differences() -> None:
    map_BCHW = draw(2, 3, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cell_gaussians(x, 2), (map_BCHW,))


def test_a_flat_map_has_a_finite_gradient() -> None:
    map_BCHW = torch.full((2, 3, 4, 4), 7.0, requires_grad=True)
    mean, std = cell_gaussians(map_BCHW, 4)
    (mean.sum() + std.sum()).backward()
    torch.testing.assert_close(std, torch.full_like(std, 1e-5**0.5))
    assert map_BCHW.grad.isfinite().all()


def test_a_distant_map_keeps_its_digits() -> None:
    near = draw(2, 3, 8, 8)
    torch.testing.assert_close(
        cell_gaussians((near + 1024).float(), 2)[1].double(), cell_gaussians(near, 2)[1], rtol=1e-3, atol=0
    )


def test_too_fine_a_grid_is_refused(scene: Any) -> None:
    with pytest.raises(OtkdError, match=r"3 × 3 cells cannot be cut from the teacher's map of 3 × 2"):
        Loss(Config(grid=3), Probe(scene.out_s, scene.out_t, 7))


@pytest.mark.parametrize(("layer", "message"), [("logits", "is a vector"), (9, "no layer 9")])
def test_a_layer_that_is_no_map_is_a_problem(cards: Any, layer: int | str, message: str) -> None:
    problems = list(Config(layer=layer).check(*cards))
    assert problems
    assert all(problem.path == "layer" and message in problem.message for problem in problems)
