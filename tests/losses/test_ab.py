"""Activation boundaries against plain loops over neurons, and against torchdistill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchdistill.losses.mid_level import AltActTransferLoss

from otkd.core.cards import ModelCard
from otkd.core.errors import OtkdError
from otkd.losses.ab import BatchNorm2d, BoundaryStage, Config, Loss
from otkd.losses.base import Probe, Stage

from .oracles import paired


def connected(connector: Any, s: Any) -> Any:
    """Maps (B, C, H, W) after the connector: each pixel's vector times a matrix, then normalised over the batch."""
    if isinstance(connector, nn.Identity):
        return s
    weight, bias = (connector[0].get_parameter(name).detach().double().numpy() for name in ("weight", "bias"))
    out = np.empty((s.shape[0], len(bias), *s.shape[2:]))
    for b, i, j in np.ndindex(s.shape[0], *s.shape[2:]):
        out[b, :, i, j] = weight[:, :, 0, 0] @ s[b, :, i, j] + bias
    for c in range(len(bias)):
        out[:, c] = (out[:, c] - out[:, c].mean()) / np.sqrt(out[:, c].var() + 1e-5)
    return out


def boundary(s: float, t: float, m: float) -> float:
    """One neuron: how far it is on the wrong side, or within the margin, of its boundary."""
    if t > 0:
        return (s - m) ** 2 if s <= m else 0.0
    return (s + m) ** 2 if s > -m else 0.0


def expected(loss: Any, out_s: Any, out_t: Any, margin: float) -> float:
    total = 0.0
    for level, connector in enumerate(loss.connectors):
        pairs = [paired(out_s.preacts[level], out_t.preacts[level], b) for b in range(5)]
        s, t = connected(connector, np.stack([pair[0] for pair in pairs])), np.stack([pair[1] for pair in pairs])
        neurons = sum(boundary(a, b, margin) for a, b in zip(s.ravel(), t.ravel(), strict=True))
        total += 2.0 ** (level + 1 - 3) * neurons * 3 / 1000 / 5
    return total


@pytest.mark.parametrize("margin", [1.0, 0.4])
def test_equals_loops(scene: Any, kin_scene: Any, margin: float) -> None:
    """With connectors, and with equal channels without."""
    for pair in (scene, kin_scene):
        loss = pair.loss("ab", {"margin": margin})
        value = loss(pair.out_s, pair.out_t, pair.batch).value.item()
        assert value == pytest.approx(expected(loss, pair.out_s, pair.out_t, margin), rel=1e-5)


def test_equals_torchdistill(kin_scene: Any) -> None:
    """With our weights of stages; it has none and no 3/1000. Maps of one size, as it does not pool."""
    preacts_t = tuple(map_s.flip(0) + 0.3 for map_s in kin_scene.out_s.preacts)
    kin_scene.out_t = kin_scene.out_t._replace(preacts=preacts_t)
    pairs, maps_s, maps_t = {}, {}, {}
    for level in range(3):
        end = {"path": str(level), "io": "output"}
        pairs[str(level)] = {"student": end, "teacher": end, "weight": 0.003 * 2 ** (level - 2)}
        maps_s[str(level)] = {"output": kin_scene.out_s.preacts[level]}
        maps_t[str(level)] = {"output": preacts_t[level]}
    torch.testing.assert_close(kin_scene.value("ab").value, AltActTransferLoss(pairs, 1.0, "mean")(maps_s, maps_t))


def test_connectors_stand_where_channels_differ(scene: Any, kin_scene: Any) -> None:
    assert [type(c).__name__ for c in kin_scene.loss("ab").connectors] == ["Identity"] * 3
    assert [type(c).__name__ for c in scene.loss("ab").connectors] == ["Sequential"] * 3


def test_connectors_have_the_published_number_of_parameters(scene: Any) -> None:
    """11 424 for wrn_40_2 → wrn_40_1 in RepDistiller."""

    def with_maps(out: Any, channels: tuple[int, ...]) -> Any:
        maps = tuple(torch.ones(2, c, 3, 3) for c in channels)
        return out._replace(features=(maps[0], *maps), preacts=maps)

    probe = Probe(with_maps(scene.out_s, (16, 32, 64)), with_maps(scene.out_t, (32, 64, 128)), 7)
    assert sum(p.numel() for p in Loss(Config(), probe).parameters()) == 11424


def test_a_stage_of_its_own_and_no_other(scene: Any) -> None:
    loss = scene.loss("ab")
    assert not loss.in_training
    assert loss.stages == (Stage("ab", 30, 0.05),)
    other = Loss(Config(stages=BoundaryStage(epochs=2, lr=0.1)), scene.probe())
    assert other.stages == (Stage("ab", 2, 0.1),)


def test_gradients_of_empty_maps_and_of_single_values(scene: Any) -> None:
    """Maps of one pixel in a batch of one image have no variance to divide by."""
    for shape in ((5, 7, 6), (1, 1, 1)):
        batch, height, width = shape
        maps_s = tuple(torch.zeros(batch, c, height, width, requires_grad=True) for c in (4, 5, 6))
        maps_t = tuple(torch.zeros(batch, c, height, width) for c in (6, 9, 17))
        out_s, out_t = scene.out_s._replace(preacts=maps_s), scene.out_t._replace(preacts=maps_t)
        value = scene.loss("ab")(out_s, out_t, scene.batch).value
        value.backward()
        assert value.isfinite()
        assert all(map_s.grad.isfinite().all() for map_s in maps_s)


def test_a_single_value_goes_through_the_running_statistics() -> None:
    norm = BatchNorm2d(3)
    norm(torch.randn(7, 3, 2, 5) + 4)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(x)[0, :, 0, 0], (x[0, :, 0, 0] - mean) / (variance + 1e-5).sqrt())
    assert torch.equal(norm.running_mean, mean)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_networks_that_hide_their_preactivations_are_a_problem(scene: Any, cards: Any, who: str) -> None:
    pair = dict(zip(("student", "teacher"), cards, strict=True))
    pair[who] = replace(pair[who], preacts=False)
    (problem,) = Config().check(**pair)
    assert f"the {who} does not show" in problem.message
    outs = {"student": scene.out_s, "teacher": scene.out_t}
    outs[who] = outs[who]._replace(preacts=())
    with pytest.raises(OtkdError, match=f"the {who} does not show"):
        Loss(Config(), Probe(classes=7, **outs))


def test_unequal_numbers_of_stages_are_a_problem(scene: Any, cards: Any) -> None:
    student, _ = cards
    teacher = ModelCard(1, (*student.taps, "stage4"), (*student.channels, 8), 8)
    (problem,) = Config().check(student, teacher)
    assert "the teacher stage1, stage2, stage3, stage4" in problem.message
    longer = scene.out_t._replace(features=(*scene.out_t.features, scene.out_t.features[-1]))
    with pytest.raises(OtkdError, match="the student has 3, the teacher 4"):
        Loss(Config(), Probe(scene.out_s, longer, 7))
