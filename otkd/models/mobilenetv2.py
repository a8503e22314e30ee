"""Inverted residuals with linear bottlenecks (Sandler et al., CVPR 2018, Table 2) at half width, for small images.

Parameter names, shapes and initialisation are those of RepDistiller (Tian et al., ICLR 2020), so its checkpoints fit:
ReLU in place of ReLU6, stride 1 in the second group of blocks, and a 1 × 1 convolution in the first block too, where it
widens nothing. The stem's tap is after the ReLU. The stages' taps are bottlenecks (groups 2, 3, 5 and 7), which have no
ReLU: they are signed, and `preacts` are the same maps. The embedding is the mean of 1280 further channels after a ReLU.
Any number of channels works, and any side from 8 on.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3", "stage4")
STEM, EMBEDDING = 16, 1280


class Group(NamedTuple):
    """Blocks of one width."""

    expansion: int
    width: int
    blocks: int
    stride: int
    """Of the first block."""
    tap: bool
    """Whether its output ends a stage."""


GROUPS = (
    Group(1, 8, 1, 1, tap=False),
    Group(6, 12, 2, 1, tap=True),
    Group(6, 16, 3, 2, tap=True),
    Group(6, 32, 4, 2, tap=False),
    Group(6, 48, 3, 1, tap=True),
    Group(6, 80, 3, 2, tap=False),
    Group(6, 160, 1, 1, tap=True),
)
WIDTHS = (STEM, *(group.width for group in GROUPS if group.tap))
CARDS: dict[str, ModelCard] = {
    "MobileNetV2": ModelCard(
        812_836, TAPS, WIDTHS, EMBEDDING, strides=(2, 2, 4, 8, 16), pools_last=False, madds=6_523_648
    )
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    return MobileNetV2(classes, channels)


class MobileNetV2(nn.Module):
    """Stem of stride 2, seven groups of inverted residuals, 1 × 1 convolution, global average pool, classifier.

    Args:
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        stem = nn.Conv2d(channels, STEM, 3, stride=2, padding=1, bias=False)
        self.conv1 = nn.Sequential(stem, nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))
        inputs = (STEM, *(group.width for group in GROUPS))
        self.blocks = nn.ModuleList(map(_blocks, inputs, GROUPS))
        last = nn.Conv2d(inputs[-1], EMBEDDING, 1, bias=False)
        self.conv2 = nn.Sequential(last, nn.BatchNorm2d(EMBEDDING), nn.ReLU(inplace=True))
        linear = nn.Linear(EMBEDDING, classes)
        self.classifier = nn.Sequential(linear)
        nn.init.normal_(linear.weight, 0.0, 0.01)
        nn.init.zeros_(linear.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The batch norm that ends each stage; no ReLU follows before the next stage's first convolution."""
        ends = (f"{i}.{group.blocks - 1}.conv.7" for i, group in enumerate(GROUPS) if group.tap)
        return tuple(self.blocks.get_submodule(end) for end in ends)

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x = self.conv1(image)
        stem, stages = x, []
        for blocks, group in zip(self.blocks, GROUPS, strict=True):
            x = blocks(x)
            if group.tap:
                stages.append(x)
        embedding_BD = self.conv2(x).mean((2, 3))
        return ModelOutput(self.classifier(embedding_BD), embedding_BD, (stem, *stages), tuple(stages), TAPS)


class InvertedResidual(nn.Module):
    """1 × 1 convolution to `expansion` times the width, 3 × 3 convolution per channel, linear 1 × 1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The bottleneck for `x` (B, C, H, W), added to it where the shapes allow."""
        bottleneck: Tensor = self.conv(x)
        return x + bottleneck if self.residual else bottleneck


def _blocks(inputs: int, group: Group) -> nn.Sequential:
    first = InvertedResidual(inputs, group.width, group.stride, group.expansion)
    rest = [InvertedResidual(group.width, group.width, 1, group.expansion) for _ in range(group.blocks - 1)]
    return nn.Sequential(first, *rest)
