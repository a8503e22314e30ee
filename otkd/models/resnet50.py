"""Residual network of bottlenecks (He et al., CVPR 2016, Table 1) for small images: a 3 × 3 stem and no max pool.

The stride sits in the 3 × 3 convolution. Parameter names, shapes and initialisation are those of RepDistiller (Tian et
al., ICLR 2020), so its checkpoints fit. Taps are after the ReLU; `preacts` hold the block sums before it. Any image
side and any number of channels works.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3", "stage4")
WIDTHS = (64, 256, 512, 1024, 2048)
CARDS: dict[str, ModelCard] = {
    "ResNet50": ModelCard(23_705_252, TAPS, WIDTHS, embedding=2048, strides=(1, 1, 2, 4, 8), madds=1_298_014_208)
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    return ResNet50(classes, channels)


class ResNet50(nn.Module):
    """Stem, stages of 3, 4, 6 and 3 bottlenecks, global average pool, linear classifier.

    Args:
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        stem, one, two, three, four = WIDTHS
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, one, blocks=3, stride=1)
        self.layer2 = _stage(one, two, blocks=4, stride=2)
        self.layer3 = _stage(two, three, blocks=6, stride=2)
        self.layer4 = _stage(three, four, blocks=3, stride=2)
        self.linear = nn.Linear(four, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before each stage's last ReLU."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return tuple(stage[-1].get_submodule("bn3") for stage in stages)

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x = F.relu(self.bn1(self.conv1(image)))
        features, preacts = [x], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                preact = block(x)
                x = F.relu(preact)  # not in place: both sides of the stage's last ReLU are taps
            features.append(x)
            preacts.append(preact)
        embedding_BD = x.mean((2, 3))
        return ModelOutput(self.linear(embedding_BD), embedding_BD, tuple(features), tuple(preacts), TAPS)


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolution at a quarter of the width, and a shortcut; their sum, before the ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = outputs // 4
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The block's sum for `x` (B, C, H, W), before the ReLU."""
        hidden = F.relu(self.bn1(self.conv1(x)), inplace=True)
        hidden = F.relu(self.bn2(self.conv2(hidden)), inplace=True)
        total: Tensor = self.bn3(self.conv3(hidden)) + self.shortcut(x)
        return total


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, outputs, stride), *rest)
