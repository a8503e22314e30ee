"""Residual networks for small images (He et al., CVPR 2016, section 4.2), in the widths of the distillation literature.

`resnet20` and its kin have 16-16-32-64 channels (stem and three stages); `x4` widens to 32-64-128-256, stem included.
Parameter names, shapes and initialisation are those of RepDistiller (Tian et al., ICLR 2020), so its checkpoints fit.
Taps are after the ReLU; `preacts` hold the block sums before it. Any image side and any number of channels works.
"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3")


def _widths(name: str) -> tuple[int, ...]:
    return (32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64)


def _card(name: str, params: int, madds: int) -> ModelCard:
    widths = _widths(name)
    return ModelCard(params, TAPS, widths, embedding=widths[-1], strides=(1, 1, 2, 4), madds=madds)


CARDS: dict[str, ModelCard] = {
    name: _card(name, *size)
    for name, size in {
        "resnet8": (83_892, 12_507_392),
        "resnet14": (181_108, 26_663_168),
        "resnet20": (278_324, 40_818_944),
        "resnet32": (472_756, 69_130_496),
        "resnet44": (667_188, 97_442_048),
        "resnet56": (861_620, 125_753_600),
        "resnet110": (1_736_564, 253_155_584),
        "resnet8x4": (1_233_540, 177_071_104),
        "resnet32x4": (7_433_860, 1_083_040_768),
    }.items()
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    depth = int(re.findall(r"\d+", name)[0])
    return ResNet((depth - 2) // 6, _widths(name), classes, channels)


class ResNet(nn.Module):
    """Stem, three stages of `blocks` basic blocks, global average pool, linear classifier.

    Args:
        blocks: basic blocks per stage.
        widths: channels of the stem and of each stage.
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, blocks: int, widths: tuple[int, ...], classes: int, channels: int) -> None:
        super().__init__()
        stem, one, two, three = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, one, blocks, stride=1)
        self.layer2 = _stage(one, two, blocks, stride=2)
        self.layer3 = _stage(two, three, blocks, stride=2)
        self.fc = nn.Linear(three, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before each stage's last ReLU."""
        return tuple(stage[-1].get_submodule("bn2") for stage in (self.layer1, self.layer2, self.layer3))

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x = F.relu(self.bn1(self.conv1(image)))
        features, preacts = [x], []
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                preact = block(x)
                x = F.relu(preact)  # not in place: both sides of the stage's last ReLU are taps
            features.append(x)
            preacts.append(preact)
        embedding_BD = x.mean((2, 3))
        return ModelOutput(self.fc(embedding_BD), embedding_BD, tuple(features), tuple(preacts), TAPS)


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut; returns their sum, before the ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The block's sum for `x` (B, C, H, W), before the ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(x)) + shortcut


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)
