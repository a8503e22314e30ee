"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016): `wrn_<depth>_<width factor>`.

Parameter names, shapes and initialisation are those of RepDistiller (Tian et al., ICLR 2020), so its checkpoints fit.
Blocks normalise before they convolve, so taps are raw: the signed output of the stem's convolution and the signed sums
of the residual stages. A stage's `preacts` entry is its sum after the batch norm that comes next (the next stage's
first, or the final one), before the ReLU; it is taken where the forward pass computes it, so that no batch norm runs
twice.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3")


def _depth_widths(name: str) -> tuple[int, tuple[int, ...]]:
    _, depth, factor = name.split("_")
    return int(depth), (16, *(width * int(factor) for width in (16, 32, 64)))


def _card(name: str, params: int, madds: int) -> ModelCard:
    widths = _depth_widths(name)[1]
    return ModelCard(params, TAPS, widths, embedding=widths[-1], strides=(1, 1, 2, 4), madds=madds)


CARDS: dict[str, ModelCard] = {
    name: _card(name, *size)
    for name, size in {
        "wrn_16_1": (180_916, 26_663_168),
        "wrn_16_2": (703_284, 101_118_464),
        "wrn_40_1": (569_780, 83_286_272),
        "wrn_40_2": (2_255_156, 327_610_880),
    }.items()
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    depth, widths = _depth_widths(name)
    return WideResNet((depth - 4) // 6, widths, classes, channels)


class WideResNet(nn.Module):
    """Stem, three stages of `blocks` pre-activation blocks, batch norm, global average pool, linear classifier.

    Args:
        blocks: blocks per stage.
        widths: channels of the stem and of each stage.
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, blocks: int, widths: tuple[int, ...], classes: int, channels: int) -> None:
        super().__init__()
        stem, one, two, three = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.block1 = Stage(stem, one, blocks, stride=1)
        self.block2 = Stage(one, two, blocks, stride=2)
        self.block3 = Stage(two, three, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(three)
        self.fc = nn.Linear(three, classes)
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before the ReLU that follows each stage."""
        first = (stage.layer[0].get_submodule("bn1") for stage in (self.block2, self.block3))
        return (*first, self.bn1)

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        stem = self.conv1(image)
        _, one = self.block1(stem)
        one_normed, two = self.block2(one)
        two_normed, three = self.block3(two)
        three_normed = self.bn1(three)
        embedding_BD = F.relu(three_normed).mean((2, 3))
        preacts = (one_normed, two_normed, three_normed)
        return ModelOutput(self.fc(embedding_BD), embedding_BD, (stem, one, two, three), preacts, TAPS)


class Stage(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = [Block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (B, C, H, W) after the first batch norm, and the stage's sum."""
        first, *rest = self.layer
        normed, x = first(x)
        for block in rest:
            _, x = block(x)
        return normed, x


class Block(nn.Module):
    """Batch norm, ReLU and 3 × 3 convolution, twice, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (B, C, H, W) after the first batch norm, and the block's sum."""
        normed = self.bn1(x)
        active = F.relu(normed)  # not in place: `normed` may be a tap
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        hidden = F.relu(self.bn2(self.conv1(active)), inplace=True)
        return normed, shortcut + self.conv2(hidden)
