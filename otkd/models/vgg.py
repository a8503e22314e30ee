"""Plain convolutional networks (Simonyan & Zisserman, ICLR 2015) with batch norm, for small images.

`vgg8` to `vgg19` are RepDistiller's (Tian et al., ICLR 2020) batch-norm variants with one linear classifier; parameter
names, shapes and initialisation are the same, so its checkpoints fit. Taps are after the ReLU; `preacts` hold the batch
norm's output before it. Max pools stand between the blocks, the last of them for images of 64 pixels or more alone
(RepDistiller: of 64 exactly), so that smaller images have two stages of one size. Any number of channels works, and any
side from 8 on.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.output import ModelOutput

TAPS = ("stem", "stage1", "stage2", "stage3", "stage4")
WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _card(params: int, madds: int) -> ModelCard:
    return ModelCard(params, TAPS, WIDTHS, embedding=512, strides=(1, 2, 4, 8, 8), madds=madds)


CARDS: dict[str, ModelCard] = {
    "vgg8": _card(3_965_028, 96_192_512),
    "vgg11": _card(9_277_284, 209_438_720),
    "vgg13": _card(9_462_180, 284_936_192),
    "vgg16": _card(14_774_436, 398_182_400),
    "vgg19": _card(20_086_692, 511_428_608),
}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    return VGG(DEPTHS[name], classes, channels)


class VGG(nn.Module):
    """Five blocks of 3 × 3 convolutions with max pools between them, global average pool, linear classifier.

    Args:
        depths: convolutions of each block.
        classes: K, outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, depths: tuple[int, ...], classes: int, channels: int) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = map(_block, inputs, WIDTHS, depths)
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before each stage's last ReLU."""
        return tuple(block[-1] for block in (self.block1, self.block2, self.block3, self.block4))

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x = F.relu(self.block0(image))
        features, preacts = [x], []
        for block in (self.block1, self.block2, self.block3, self.block4):
            if block is not self.block4 or image.shape[2] >= 64:
                x = F.max_pool2d(x, 2)
            preact = block(x)
            x = F.relu(preact)  # not in place: both sides are taps
            features.append(x)
            preacts.append(preact)
        embedding_BD = x.mean((2, 3))
        return ModelOutput(self.classifier(embedding_BD), embedding_BD, tuple(features), tuple(preacts), TAPS)


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` times convolution, batch norm and ReLU, without the last ReLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
