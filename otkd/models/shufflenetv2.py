"""Channel split and shuffle without groups (Ma et al., ECCV 2018, Table 5, width 1), for small images.

Parameter names and shapes are those of RepDistiller (Tian et al., ICLR 2020), so its checkpoints fit; initialisation is
PyTorch's, as there. It departs from the article in a 1 × 1 stem without max pool. Taps are after the ReLU and the
channel shuffle. A stage's `preacts` entry joins the half that its last block passes on (after an earlier ReLU) and the
computed half before its ReLU, *before* the shuffle: its channels are in another order than the tap's. The embedding is
the mean of 1024 further channels after a ReLU. RepDistiller names no batch norm before a ReLU: there is no `norms`. Any
image side and any number of channels works.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3")
WIDTHS = (24, 116, 232, 464)
EMBEDDING = 1024
CARDS: dict[str, ModelCard] = {
    "ShuffleV2": ModelCard(
        1_355_528, TAPS, WIDTHS, EMBEDDING, strides=(1, 2, 4, 8), norms=False, pools_last=False, madds=44_504_448
    )
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    return ShuffleV2(classes, channels)


class ShuffleV2(nn.Module):
    """Stem, stages of 4, 8 and 4 blocks, 1 × 1 convolution, global average pool, linear classifier.

    Args:
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        stem, one, two, three = WIDTHS
        self.conv1 = nn.Conv2d(channels, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, one, blocks=4)
        self.layer2 = _stage(one, two, blocks=8)
        self.layer3 = _stage(two, three, blocks=4)
        self.conv2 = nn.Conv2d(three, EMBEDDING, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(EMBEDDING)
        self.linear = nn.Linear(EMBEDDING, classes)

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x = F.relu(self.bn1(self.conv1(image)))
        features, preacts = [x], []
        for stage in (self.layer1, self.layer2, self.layer3):
            x, preact = _run(stage, x)
            features.append(x)
            preacts.append(preact)
        embedding_BD = F.relu(self.bn2(self.conv2(x)), inplace=True).mean((2, 3))
        return ModelOutput(self.linear(embedding_BD), embedding_BD, tuple(features), tuple(preacts), TAPS)


class Down(nn.Module):
    """Halves the image: two branches see all channels and give half of the new ones each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves for `x` (B, C, H, W): the left one after, the right one before its ReLU."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return left, self.bn5(self.conv5(self.bn4(self.conv4(right))))


class Block(nn.Module):
    """Passes one half of the channels on and computes the other half anew."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves for `x` (B, C, H, W): the one passed on, and the computed one before its ReLU."""
        passed, hidden = x.chunk(2, 1)
        hidden = F.relu(self.bn1(self.conv1(hidden)), inplace=True)
        return passed, self.bn3(self.conv3(self.bn2(self.conv2(hidden))))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Down(inputs, outputs), *(Block(outputs) for _ in range(blocks - 1)))


def _run(stage: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """The stage's output for `x` (B, C, H, W), and its last block's halves before ReLU and shuffle."""
    for block in stage:
        passed, computed = block(x)
        x = _shuffle(torch.cat((passed, F.relu(computed)), 1))  # not in place: `computed` goes into a tap
    return x, torch.cat((passed, computed), 1)


def _shuffle(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) with the channels of its halves in turn."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
