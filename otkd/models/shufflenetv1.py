"""Grouped 1 × 1 convolutions with channel shuffle (Zhang et al., CVPR 2018, Table 1, three groups), for small images.

Parameter names and shapes are those of RepDistiller (Tian et al., ICLR 2020), so its checkpoints fit; initialisation is
PyTorch's, as there. It departs from the article in a 1 × 1 stem without max pool and a ReLU after the 3 × 3
convolution. Taps are after the ReLU; `preacts` hold the block sums before it. RepDistiller names no batch norm before a
ReLU: there is no `norms`. Any image side and any number of channels works.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3")
WIDTHS = (24, 240, 480, 960)
GROUPS = 3
CARDS: dict[str, ModelCard] = {
    "ShuffleV1": ModelCard(949_258, TAPS, WIDTHS, embedding=960, strides=(1, 2, 4, 8), norms=False, madds=38_691_456)
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    return ShuffleV1(classes, channels)


class ShuffleV1(nn.Module):
    """Stem, stages of 4, 8 and 4 blocks, global average pool, linear classifier.

    Args:
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        stem, one, two, three = WIDTHS
        self.conv1 = nn.Conv2d(channels, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, one, blocks=4, groups_in=1)  # 24 channels are too few for groups
        self.layer2 = _stage(one, two, blocks=8)
        self.layer3 = _stage(two, three, blocks=4)
        self.linear = nn.Linear(three, classes)

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
        return ModelOutput(self.linear(embedding_BD), embedding_BD, tuple(features), tuple(preacts), TAPS)


class Block(nn.Module):
    """Grouped 1 × 1, per-channel 3 × 3 and grouped 1 × 1 convolution, and a shortcut; before the ReLU.

    With stride 2 the shortcut is a mean pool, and its channels are put behind the convolutions'.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups_in: int = GROUPS) -> None:
        super().__init__()
        computed = outputs - inputs if stride == 2 else outputs
        hidden = computed // 4
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, hidden, 1, groups=groups_in, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, computed, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(computed)

    def forward(self, x: Tensor) -> Tensor:
        """The block's sum or concatenation for `x` (B, C, H, W), before the ReLU."""
        hidden = _shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.conv1.groups)
        hidden = F.relu(self.bn2(self.conv2(hidden)), inplace=True)
        computed: Tensor = self.bn3(self.conv3(hidden))
        return torch.cat((computed, F.avg_pool2d(x, 3, 2, padding=1)), 1) if self.stride == 2 else computed + x


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """`x` (B, C, H, W) with its channels dealt out: one of each group, then the next of each."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _stage(inputs: int, outputs: int, blocks: int, groups_in: int = GROUPS) -> nn.Sequential:
    rest = [Block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, 2, groups_in), *rest)
