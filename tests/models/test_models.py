"""Every network against its card, the published parameter lists and the contract of `ModelOutput`."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from otkd.core import plugins
from otkd.core.errors import OtkdError
from otkd.core.output import ModelOutput
from otkd.models.factory import create

CARDS = plugins.cards("models")
REFERENCE = json.loads(Path(__file__).with_name("repdistiller_shapes.json").read_text())
every_model = pytest.mark.parametrize("name", CARDS)
reference_models = pytest.mark.parametrize("name", REFERENCE["sha256"])


def network(name: str, classes: int = 100, channels: int = 3, seed: int = 0) -> nn.Module:
    return create(name, classes=classes, channels=channels, seed=seed)


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in model.state_dict().items()}


@every_model
def test_card_counts_parameters(name: str) -> None:
    assert sum(p.numel() for p in network(name).parameters()) == CARDS[name].params


@every_model
@pytest.mark.parametrize(("side", "channels", "classes"), [(32, 3, 100), (8, 1, 10), (15, 3, 7)])
def test_card_describes_output(name: str, side: int, channels: int, classes: int) -> None:
    card = CARDS[name]
    with torch.no_grad():
        out = network(name, classes, channels).eval()(torch.randn(2, channels, side, side))
    assert isinstance(out, ModelOutput)
    assert out.logits.shape == (2, classes)
    assert out.embedding.shape == (2, card.embedding)
    assert out.taps == card.taps
    assert tuple(f.shape[1] for f in out.features) == card.channels
    assert [p.shape for p in out.preacts] == [f.shape for f in out.stages]
    assert all(f.shape[2] == f.shape[3] for f in out.features)


@every_model
def test_taps_survive_a_training_step(name: str) -> None:
    """Every tap takes a gradient: none was overwritten in place after it was handed out."""
    model = network(name, classes=5, channels=1)
    out = model(torch.randn(2, 1, 8, 8))
    taps = [out.logits, out.embedding, *out.features, *out.preacts]
    sum(tap.square().mean() for tap in taps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_batch_norm_runs_once_per_forward(name: str) -> None:
    model = network(name, classes=5, channels=1)
    model(torch.randn(2, 1, 8, 8))
    counts = {m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts <= {1}


@every_model
def test_seed_alone_decides_weights(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = network(name, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = network(name, seed=3).state_dict(), network(name, seed=4).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@reference_models
def test_state_dict_is_repdistillers(name: str) -> None:
    listing = shapes(network(name))
    if name in REFERENCE["listing"]:
        assert listing == REFERENCE["listing"][name]
    text = json.dumps(listing, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == REFERENCE["sha256"][name]


@pytest.mark.parametrize("name", ["resnet14", "resnet8x4"])
def test_resnet_features_are_preacts_after_relu(name: str) -> None:
    with torch.no_grad():
        out = network(name).eval()(torch.randn(2, 3, 16, 16))
    for preact, feature in zip(out.preacts, out.stages, strict=True):
        assert (preact < 0).any()
        assert torch.equal(F.relu(preact), feature)
    assert (out.features[0] >= 0).all()
    torch.testing.assert_close(out.embedding, out.features[-1].mean((2, 3)))


@pytest.mark.parametrize("name", ["wrn_16_1", "wrn_16_2"])
def test_wrn_preacts_are_sums_after_the_next_batch_norm(name: str) -> None:
    model = network(name).eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        model(image)
        out = model(image)
        norms = [model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1]
        for norm, preact, feature in zip(norms, out.preacts, out.stages, strict=True):
            assert torch.equal(norm(feature), preact)
        assert torch.equal(model.conv1(image), out.features[0])
        torch.testing.assert_close(out.embedding, F.relu(out.preacts[-1]).mean((2, 3)))
    assert all((feature < 0).any() for feature in out.features)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2"])
def test_convolutions_start_at_fan_out_scale(name: str) -> None:
    """Standard deviation √(2 / (k² · out)) on the widest convolution, within sampling error."""
    convs = [m for m in network(name).modules() if isinstance(m, nn.Conv2d)]
    widest = max(convs, key=lambda m: m.weight.numel())
    expected = math.sqrt(2 / (9 * widest.out_channels))
    assert widest.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(widest.weight.mean().item()) < expected / 50


def test_stages_halve_the_image() -> None:
    with torch.no_grad():
        out = network("resnet8").eval()(torch.randn(1, 3, 32, 32))
    assert [f.shape[-1] for f in out.features] == [32, 32, 16, 8]


def test_unknown_name_gets_nearest_match() -> None:
    with pytest.raises(OtkdError, match="Did you mean 'resnet20'"):
        network("resnet200")
