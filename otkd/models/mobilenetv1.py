"""Depthwise separable convolutions (Howard et al., 2017, Table 1) at full width: ResNet50's usual student on ImageNet.

Parameter names are those of mdistiller and many others (`model.<block>.<layer>`, `fc`), so their checkpoints fit;
initialisation is PyTorch's, as there. A stage is all blocks of one resolution below the stem's; its tap is after the
last ReLU, and `preacts` are the maps before it. Any side and any number of channels works.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3", "stage4")
STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2), (1024, 1))
"""Channels and stride of each block."""
ENDS = (3, 5, 11, 13)
"""Blocks, counted from the stem, which is 0, that end a stage."""
WIDTHS = (STEM, *(BLOCKS[end - 1][0] for end in ENDS))
CARDS: dict[str, ModelCard] = {
    "MobileNetV1": ModelCard(
        3_309_476, TAPS, WIDTHS, embedding=1024, strides=(2, 4, 8, 16, 32), madds=567_818_752, side=224
    )
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    return MobileNetV1(classes, channels)


class MobileNetV1(nn.Module):
    """Stem of stride 2, thirteen blocks, global average pool, linear classifier.

    Args:
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(channels, STEM, 3, 2, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU())
        inputs = (STEM, *(width for width, _ in BLOCKS))
        blocks = (_block(width, *block) for width, block in zip(inputs, BLOCKS, strict=False))
        self.model = nn.Sequential(stem, *blocks)
        self.fc = nn.Linear(inputs[-1], classes)

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before each stage's last ReLU."""
        return tuple(self.model.get_submodule(f"{end}.4") for end in ENDS)

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x, features, preacts = image, [], []
        for place, block in enumerate(self.model):
            preact = cast(nn.Sequential, block)[:-1](x)
            x = F.relu(preact)  # not in place: both sides of a stage's last ReLU are taps
            if place == 0 or place in ENDS:
                features.append(x)
                preacts.append(preact)
        embedding_BD = x.mean((2, 3))
        return ModelOutput(self.fc(embedding_BD), embedding_BD, tuple(features), tuple(preacts[1:]), TAPS)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3 × 3 convolution per channel and a 1 × 1 convolution, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
