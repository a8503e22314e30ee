"""timm's networks, as `timm/<name>`, where the package timm is installed; modules, names and weights are timm's own.

Taps are the maps that timm lists for the network (`feature_info`); of a network with one resolution, such as a ViT, the
quarters of its depth. Where the first of them is already a whole stage, `stem` is that map once more, so that stages
pair with those of other families. The embedding is what `forward_head(…, pre_logits=True)` gives. The family lists no
networks, for there are over a thousand: a card is measured when its name is asked for, which imports timm and torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.errors import OtkdError, did_you_mean
from otkd.core.output import ModelOutput
from otkd.models.torchvision import card_of

PREFIX = "timm/"


class Cards(Mapping[str, ModelCard]):
    """The card of any of timm's networks by name; iteration gives none."""

    def __getitem__(self, name: str) -> ModelCard:
        if not name.startswith(PREFIX):
            raise KeyError(name)
        if find_spec("timm") is None:
            raise OtkdError(f"{name} is a network of the package timm, which is not installed: pip install timm")
        card: ModelCard = import_module("otkd.models.timm").card(name)
        return card

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


CARDS = Cards()


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name`, freshly initialised from torch's global generator."""
    import timm

    short = name.removeprefix(PREFIX)
    if not timm.is_model(short):
        raise OtkdError(f"timm has no network {short!r}.{did_you_mean(short, timm.list_models())}")
    network: Any = timm.create_model(short, pretrained=False, num_classes=classes, in_chans=channels)
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "forward_head"):
        raise OtkdError(f"{name} cannot be used: timm does not show its maps (it has no forward_intermediates)")
    network.tap_indices, network.has_stem = _taps([info["reduction"] for info in network.feature_info])
    network.__class__ = type(f"Tapped{type(network).__name__}", (Tapped, type(network)), {})
    made: nn.Module = network
    return made


@cache
def card(name: str) -> ModelCard:
    """The measured card of the network `name`, for images of the size that timm's weights were made for."""
    with torch.device("meta"):
        network: Any = build(name, 100, 3)
    try:
        return card_of(network, network.pretrained_cfg["input_size"][-1], pools_last=False)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise OtkdError(f"{name} cannot be used: its maps, embedding and logits have another form: {error}") from error


class Tapped:
    """Put before a timm network's own class: its `forward` returns every tap."""

    def forward(self: Any, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x, features = self.forward_intermediates(image, indices=self.tap_indices)
        if not self.has_stem:
            features = [features[0], *features]
        taps = ("stem", *(f"stage{i}" for i in range(1, len(features))))
        embedding_BD = self.forward_head(x, pre_logits=True)
        return ModelOutput(self.forward_head(x), embedding_BD, tuple(features), (), taps)


def _taps(reductions: list[int]) -> tuple[list[int], bool]:
    """Which of timm's maps become taps, and whether the first of them is a stem."""
    count = len(reductions)
    if count > 4 and len(set(reductions)) == 1:
        return [count * quarter // 4 - 1 for quarter in range(1, 5)], False
    return list(range(count)), reductions[0] < 4
