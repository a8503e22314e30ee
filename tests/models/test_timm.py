"""timm's networks against timm itself, and how their cards are found."""

import copy
from importlib import util

import pytest
import torch
from torch import nn

from otkd.core import plugins
from otkd.core.errors import OtkdError
from otkd.core.output import ModelOutput
from otkd.models import timm as family
from otkd.models.factory import create

timm = pytest.importorskip("timm")

STRIDES = {
    "resnet18": (2, 4, 8, 16, 32),
    "mobilenetv3_small_050": (2, 4, 8, 16, 32),
    "efficientnet_b0": (2, 4, 8, 16, 32),
    "convnext_atto": (4, 4, 8, 16, 32),
    "vit_tiny_patch16_224": (16, 16, 16, 16, 16),
    "swin_tiny_patch4_window7_224": (4, 4, 8, 16, 32),
}
every_network = pytest.mark.parametrize("name", STRIDES)


def images(name: str) -> torch.Tensor:
    side = 224 if name.endswith("224") else 64
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def network(name: str) -> nn.Module:
    return create(f"timm/{name}", classes=7, channels=3, seed=0)


@every_network
def test_runs_as_timms_own(name: str) -> None:
    ours = network(name).eval()
    theirs = timm.create_model(name, num_classes=7).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        out, expected = ours(images(name)), theirs(images(name))
        embedding = theirs.forward_head(theirs.forward_features(images(name)), pre_logits=True)
    assert isinstance(out, ModelOutput)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.embedding, embedding, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.get_classifier()(out.embedding), out.logits, rtol=1e-4, atol=1e-5)


@every_network
def test_card_describes_network(name: str) -> None:
    card, model = family.CARDS[f"timm/{name}"], network(name)
    with torch.no_grad():
        out = model.eval()(images(name))
    assert card.params == sum(p.numel() for p in model.parameters()) + 93 * (card.embedding + 1)
    assert card.taps == out.taps
    assert card.channels == tuple(tap.shape[1] for tap in out.features)
    assert card.strides == STRIDES[name] == tuple(images(name).shape[-1] // tap.shape[-1] for tap in out.features)
    assert card.embedding == out.embedding.shape[1]
    assert card.side == 224


def test_multiply_adds() -> None:
    """Those of torchvision's network, which is the same."""
    theirs = plugins.head("models", "torchvision").CARDS["torchvision/resnet18"]
    assert family.CARDS["timm/resnet18"].madds == theirs.madds


def test_vit_taps_are_quarters() -> None:
    model = network("vit_tiny_patch16_224").eval()
    image = images("vit_tiny_patch16_224")
    with torch.no_grad():
        out, blocks = model(image), model.forward_intermediates(image, intermediates_only=True)
    for tap, index in zip(out.features, (2, 2, 5, 8, 11), strict=True):
        assert torch.equal(tap, blocks[index])


@every_network
def test_trains(name: str) -> None:
    model = network(name)
    out = model(images(name))
    sum(tap.square().mean() for tap in (out.logits, out.embedding, *out.features)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_other_input_channels_and_copies() -> None:
    model = create("timm/resnet18", classes=5, channels=1, seed=0).eval()
    image = torch.randn(2, 1, 33, 33)
    assert torch.equal(copy.deepcopy(model)(image).logits, model(image).logits)


def test_planning_finds_cards_without_a_list() -> None:
    cards = plugins.head("models", "timm").CARDS
    assert list(cards) == []
    assert "resnet18" not in cards
    assert "timm/resnet18" in cards
    assert plugins.family_of("timm/resnet18") == "timm"


def test_unknown_name_gets_nearest_match() -> None:
    with pytest.raises(OtkdError, match=r"no network 'resnet19'\. Did you mean 'resnet"):
        family.CARDS["timm/resnet19"]


def test_says_how_to_get_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(family, "find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(OtkdError, match="pip install timm"):
        family.CARDS["timm/resnet18"]
