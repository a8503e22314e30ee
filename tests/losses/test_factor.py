"""Factor transfer against loops over pixels, and against torchdistill's modules and loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchdistill.losses.mid_level import FTLoss
from torchdistill.models.wrapper import Paraphraser4FactorTransfer, Translator4FactorTransfer

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe, Stage
from otkd.losses.factor import Config, Loss, ParaphraserStage

from .oracles import paired


def convolved(layer: Any, x: Any) -> Any:
    """3 × 3 convolution (B, C, H, W) with a border of zeros; a transposed one has its kernel turned round."""
    weight, bias = (layer.get_parameter(name).detach().double().numpy() for name in ("weight", "bias"))
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.empty((len(x), len(bias), *x.shape[2:]))
    for b, o, i, j in np.ndindex(out.shape):
        out[b, o, i, j] = (padded[b, :, i : i + 3, j : j + 3] * weight[o]).sum() + bias[o]
    return out


def through(layers: Any, x: Any) -> Any:
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            x = (x - mean) / np.sqrt(variance + 1e-5)
        elif isinstance(layer, nn.LeakyReLU):
            x = np.where(x > 0, x, 0.1 * x)
        else:
            x = convolved(layer, x)
    return x


def factor(x: Any, collapse: bool) -> Any:
    flat = (x**2).mean(0).ravel() if collapse else x.ravel()
    return flat / np.sqrt((flat**2).sum())


@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_equals_loops(scene: Any, rate: float, collapse: bool) -> None:
    loss = scene.loss("factor", {"rate": rate, "collapse": collapse})
    factors_s = torch.tensor(through(loss.translator, scene.out_s.stages[-1].double().numpy()))
    factors_t = torch.tensor(through(loss.encoder, scene.out_t.stages[-1].double().numpy()))
    assert factors_s.shape[1] == factors_t.shape[1] == int(17 * rate)
    pairs = [paired(factors_s, factors_t, b) for b in range(5)]
    expected = np.mean([np.abs(factor(s, collapse) - factor(t, collapse)) for s, t in pairs])
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == pytest.approx(expected, rel=1e-5)


def test_reconstruction_equals_loops(scene: Any) -> None:
    loss, map_t = scene.loss("factor"), scene.out_t.stages[-1]
    rebuilt = through(loss.decoder, through(loss.encoder, map_t.double().numpy()))
    expected = ((rebuilt - map_t.numpy()) ** 2).mean()
    result = loss.pretrain(None, scene.out_t, scene.batch)
    assert result.value.item() == pytest.approx(expected, rel=1e-5)


def test_equals_torchdistill(kin_scene: Any) -> None:
    """With channels kept and its layers: its paraphraser without batch norm, its translator with. Maps of one size."""
    out_s = kin_scene.out_s
    out_t = kin_scene.out_t._replace(features=tuple(f.flip(0) + 0.2 for f in out_s.features))
    loss = Loss(Config(collapse=False), Probe(out_s, out_t, 7))
    paraphraser, translator = Paraphraser4FactorTransfer(0.5, 6, uses_bn=False), Translator4FactorTransfer(6, 3)
    paraphraser.encoder.load_state_dict(loss.encoder.state_dict())
    paraphraser.decoder.load_state_dict(loss.decoder.state_dict())
    translator.load_state_dict(loss.translator.state_dict())
    map_s, map_t = out_s.stages[-1], out_t.stages[-1]
    error = nn.functional.mse_loss(paraphraser(map_t), map_t)
    torch.testing.assert_close(loss.pretrain(None, out_t, kin_scene.batch).value, error)
    ends = ({"translator": {"output": translator(map_s)}}, {"paraphraser": {"output": paraphraser.encoder(map_t)}})
    torch.testing.assert_close(loss(out_s, out_t, kin_scene.batch).value, FTLoss()(*ends))


def test_has_the_published_number_of_parameters(scene: Any) -> None:
    """RepDistiller's 516 672 and 111 168 for wrn_40_2 → wrn_40_1, whose last maps have 128 and 64 channels."""

    def with_channels(out: Any, channels: int) -> Any:
        return out._replace(features=(*out.features[:-1], torch.ones(2, channels, 3, 3)))

    loss = Loss(Config(), Probe(with_channels(scene.out_s, 64), with_channels(scene.out_t, 128), 7))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in loss.named_children()}
    assert counts["encoder"] + counts["decoder"] == 516672
    assert counts["translator"] == 111168


def test_the_paraphraser_learns_in_its_stage_and_never_after(scene: Any) -> None:
    loss = scene.loss("factor")
    loss.pretrain(None, scene.out_t, scene.batch).value.backward()
    assert all((p.grad is None) == name.startswith("translator") for name, p in loss.named_parameters())
    loss.zero_grad()
    loss(scene.out_s, scene.out_t, scene.batch).value.backward()
    assert all((p.grad is not None) == name.startswith("translator") for name, p in loss.named_parameters())


def test_its_stage_leaves_the_student_alone(scene: Any) -> None:
    loss = scene.loss("factor")
    assert loss.in_training
    assert loss.stages == (Stage("paraphraser", 30, 0.01, student=False),)
    other = Loss(Config(stages=ParaphraserStage(epochs=2, lr=0.1)), scene.probe())
    assert other.stages == (Stage("paraphraser", 2, 0.1, student=False),)


@pytest.mark.parametrize("collapse", [True, False])
def test_empty_maps_and_single_values_are_survived(scene: Any, collapse: bool) -> None:
    for shape_s, shape_t in (((5, 6, 3, 2), (5, 17, 3, 2)), ((1, 6, 1, 1), (1, 17, 1, 1))):
        map_s, map_t = torch.zeros(shape_s, requires_grad=True), torch.zeros(shape_t)
        out_s = scene.out_s._replace(features=(*scene.out_s.features[:-1], map_s))
        out_t = scene.out_t._replace(features=(*scene.out_t.features[:-1], map_t))
        loss = scene.loss("factor", {"collapse": collapse})
        value = loss(out_s, out_t, scene.batch).value + loss.pretrain(None, out_t, scene.batch).value
        value.backward()
        assert value.isfinite()
        assert map_s.grad is not None
        assert map_s.grad.isfinite().all()


def test_needs_a_teacher(scene: Any) -> None:
    with pytest.raises(OtkdError, match="factor compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))
