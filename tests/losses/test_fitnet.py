"""FitNets' hint by hand: convolution by `torch.nn.functional` pieces, batch norm and ReLU from their definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe, Stage
from otkd.losses.fitnet import Config, HintStage, Loss


def by_hand(loss: Loss, map_s: Tensor, relu: bool) -> Tensor:
    """A valid convolution as one sum over the window, then normalisation over batch and space."""
    weight, bias = (loss.regressor[0].get_parameter(name) for name in ("weight", "bias"))
    windows = map_s.unfold(2, weight.shape[2], 1).unfold(3, weight.shape[3], 1)
    x = torch.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x.clamp_min(0) if relu else x


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layer", [1, 2, "stage3"])
def test_equals_by_hand(scene: Any, layer: int | str, relu: bool, reduction: str) -> None:
    options = {"layer": layer, "relu": relu, "reduction": reduction}
    loss = scene.loss("fitnet", options)
    gap = by_hand(loss, scene.out_s.layer(layer), relu) - scene.out_t.layer(layer)
    expected = getattr(gap.square(), reduction)()
    torch.testing.assert_close(loss(scene.out_s, scene.out_t, scene.batch).value, expected)


@pytest.mark.parametrize(
    ("size_s", "size_t", "kind", "kernel"),
    [
        ((8, 8), (4, 4), "Conv2d", (3, 3)),
        ((4, 6), (8, 12), "ConvTranspose2d", (4, 4)),
        ((7, 9), (7, 9), "Conv2d", (1, 1)),
        ((7, 9), (5, 8), "Conv2d", (3, 2)),
        ((2, 2), (1, 1), "Conv2d", (3, 3)),
    ],
)
def test_regressor_follows_the_rule_of_sizes(
    scene: Any, size_s: tuple[int, int], size_t: tuple[int, int], kind: str, kernel: tuple[int, int]
) -> None:
    out_s, out_t = with_map(scene.out_s, 3, size_s), with_map(scene.out_t, 5, size_t)
    loss = Loss(Config(layer=1), Probe(out_s, out_t, 7))
    assert type(loss.regressor[0]).__name__ == kind
    assert loss.regressor[0].kernel_size == kernel
    assert loss(out_s, out_t, scene.batch).value.isfinite()


@pytest.mark.parametrize(("channels_s", "channels_t", "expected"), [(16, 16, 304), (32, 64, 2240), (256, 256, 66304)])
def test_regressor_has_the_published_number_of_parameters(
    scene: Any, channels_s: int, channels_t: int, expected: int
) -> None:
    """RepDistiller's ConvReg: 2240 for wrn_40_2 → wrn_40_1, 66304 for vgg13 → vgg8, at stage 2."""
    probe = Probe(with_map(scene.out_s, channels_s, (3, 3)), with_map(scene.out_t, channels_t, (3, 3)), 7)
    assert sum(p.numel() for p in Loss(Config(layer=1), probe).parameters()) == expected


def with_map(out: Any, channels: int, size: tuple[int, int]) -> Any:
    return out._replace(features=(out.features[0], torch.ones(5, channels, *size), *out.features[2:]))


def test_impossible_sizes_are_refused(scene: Any) -> None:
    probe = Probe(with_map(scene.out_s, 3, (3, 3)), with_map(scene.out_t, 3, (7, 7)), 7)
    with pytest.raises(OtkdError, match=r"3 × 3 to the teacher's 7 × 7.*Choose another layer"):
        Loss(Config(layer=1), probe)


def test_joint_by_default_and_staged_on_demand(scene: Any) -> None:
    assert scene.loss("fitnet").stages == ()
    assert scene.loss("fitnet").in_training
    staged = scene.loss("fitnet", {"stages": {"epochs": 5, "lr": 0.01}})
    assert staged.stages == (Stage("hint", 5, 0.01),)
    assert not staged.in_training
    assert Config(stages=HintStage(epochs=5, lr=0.01)).model_dump(mode="json")["stages"] == {"epochs": 5, "lr": 0.01}


@pytest.mark.parametrize(("layer", "message"), [("embedding", "is a vector"), (9, "no layer 9"), ("stage", "stage1")])
def test_a_layer_that_is_no_map_is_a_problem(cards: Any, layer: int | str, message: str) -> None:
    problems = list(Config(layer=layer).check(*cards))
    assert problems
    assert all(problem.path == "layer" and message in problem.message for problem in problems)


@pytest.mark.parametrize("layer", [3, "stage3"])
def test_a_map_that_no_regressor_can_enlarge_is_refused_at_planning(cards: Any, layer: int | str) -> None:
    student, teacher = cards
    assert not list(Config(layer=layer).check(replace(student, strides=(1, 1, 2, 8)), teacher))
    (problem,) = Config(layer=layer).check(replace(student, strides=(1, 1, 2, 16)), teacher)
    assert problem.path == "layer"
    assert "16 times smaller than the image, the teacher's 4 times" in problem.message
