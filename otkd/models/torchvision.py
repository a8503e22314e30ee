"""torchvision's classification networks, as `torchvision/<name>`, with its modules, their names and initialisation.

A checkpoint of torchvision's network therefore fits, and `pretrained` fetches its published weights. Taps are the first
convolution (`stem`) and the last map of each resolution, before a final 1 × 1 convolution that only widens (MobileNet,
EfficientNet, MNASNet, ShuffleNet), as RepDistiller and timm place them. A ViT has one resolution: its taps are quarters
of its depth, without the class token. A last norm that comes before the pooling belongs to the last tap (DenseNet, with
its ReLU; Swin; ViT). The embedding is taken before the last dropout, which is thus noise of the classifier alone;
SqueezeNet classifies every place of its last map, and its embedding is that map's mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from otkd.core.cards import ModelCard
from otkd.core.errors import CheckpointError, OtkdError, did_you_mean
from otkd.core.output import ModelOutput

PREFIX = "torchvision/"

# scripts/torchvision_cards measures the networks and writes these lines. `mean`: the embedding is the last map's mean;
# `weights`: on ImageNet, in images of this size.
TABLE = """
model                   params           madds side embedding mean channels                 strides        weights
alexnet             57_413_540     710_502_080  224      4096 no   64,192,256               4,8,16         V1
convnext_base       87_668_964  15_353_807_872  224      1024 no   128,128,256,512,1024     4,4,8,16,32    V1
convnext_large     196_384_036  34_360_051_200  224      1536 no   192,192,384,768,1536     4,4,8,16,32    V1
convnext_small      49_531_588   8_683_021_056  224       768 no   96,96,192,384,768        4,4,8,16,32    V1
convnext_tiny       27_897_028   4_454_840_064  224       768 no   96,96,192,384,768        4,4,8,16,32    V1
densenet121          7_056_356   2_833_240_064  224      1024 yes  64,256,512,1024,1024     2,4,8,16,32    V1
densenet161         26_692_900   7_725_919_872  224      2208 yes  96,384,768,2112,2208     2,4,8,16,32    V1
densenet169         12_650_980   3_358_345_728  224      1664 yes  64,256,512,1280,1664     2,4,8,16,32    V1
densenet201         18_285_028   4_289_637_888  224      1920 yes  64,256,512,1792,1920     2,4,8,16,32    V1
efficientnet_b0      4_135_648     384_662_752  224      1280 no   32,24,40,112,320         2,4,8,16,32    V1
efficientnet_b1      6_641_284     685_650_832  240      1280 no   32,24,40,112,320         2,4,8,16,32    V1,V2
efficientnet_b2      7_841_894   1_086_262_256  288      1408 no   32,24,48,120,352         2,4,8,16,32    V1
efficientnet_b3     10_849_932   1_825_758_992  300      1536 no   40,32,48,136,384         2,4,8,16,32    V1
efficientnet_b4     17_727_916   4_392_158_224  380      1792 no   48,32,56,160,448         2,4,8,16,32    V1
efficientnet_b5     28_545_684  10_264_541_552  456      2048 no   48,40,64,176,512         2,4,8,16,32    V1
efficientnet_b6     40_966_204  19_065_519_936  528      2304 no   56,40,72,200,576         2,4,8,16,32    V1
efficientnet_b7     64_043_060  37_743_580_192  600      2560 no   64,48,80,224,640         2,4,8,16,32    V1
efficientnet_v2_l  117_362_372  56_078_547_008  480      1280 no   32,64,96,224,640         2,4,8,16,32    V1
efficientnet_v2_m   52_986_456  24_581_308_384  480      1280 no   24,48,80,176,512         2,4,8,16,32    V1
efficientnet_v2_s   20_305_588   8_364_465_152  384      1280 no   24,48,64,160,256         2,4,8,16,32    V1
googlenet            5_702_404   1_497_454_592  224      1024 yes  64,192,480,832,1024      2,4,8,16,32    V1
inception_v3        21_990_468   5_711_372_896  299      2048 yes  64,192,288,768,2048      2,4,8,16,32    V1
maxvit_t            30_458_824   5_557_585_920  224       512 no   64,64,128,256,512        2,4,8,16,32    V1
mnasnet0_5           1_065_612     103_303_968  224      1280 no   16,16,24,48,160          2,4,8,16,32    V1
mnasnet0_75          2_017_308     214_341_104  224      1280 no   24,24,32,72,240          2,4,8,16,32    V1
mnasnet1_0           3_230_412     313_263_872  224      1280 no   32,24,40,96,320          2,4,8,16,32    V1
mnasnet1_3           5_129_356     525_210_432  224      1280 no   40,32,56,128,416         2,4,8,16,32    V1
mobilenet_v2         2_351_972     299_622_272  224      1280 no   32,24,32,96,320          2,4,8,16,32    V1,V2
mobilenet_v3_large   4_330_132     215_437_760  224      1280 no   16,24,40,112,160         2,4,8,16,32    V1,V2
mobilenet_v3_small   1_620_356      55_588_800  224      1024 no   16,16,24,48,96           2,4,8,16,32    V1
regnet_x_16gf       52_434_436  15_938_912_256  224      2048 yes  32,256,512,896,2048      2,4,8,16,32    V1,V2
regnet_x_1_6gf       8_368_436   1_602_028_992  224       912 yes  32,72,168,408,912        2,4,8,16,32    V1,V2
regnet_x_32gf      105_542_660  31_733_661_792  224      2520 yes  32,336,672,1344,2520     2,4,8,16,32    V1,V2
regnet_x_3_2gf      14_388_452   3_175_714_752  224      1008 yes  32,96,192,432,1008       2,4,8,16,32    V1,V2
regnet_x_400mf       5_135_076     413_452_608  224       400 yes  32,32,64,160,400         2,4,8,16,32    V1,V2
regnet_x_800mf       6_653_956     799_094_912  224       672 yes  32,64,128,288,672        2,4,8,16,32    V1,V2
regnet_x_8gf        37_843_748   7_993_404_416  224      1920 yes  32,80,240,720,1920       2,4,8,16,32    V1,V2
regnet_y_128gf     638_159_194 127_511_162_880  224      7392 yes  32,528,1056,2904,7392    2,4,8,16,32    SWAG_E2E_V1,SWAG_LINEAR_V1
regnet_y_16gf       80_867_640  15_908_788_672  224      3024 yes  32,224,448,1232,3024     2,4,8,16,32    V1,V2,SWAG_E2E_V1,SWAG_LINEAR_V1
regnet_y_1_6gf      10_402_330   1_611_276_960  224       888 yes  32,48,120,336,888        2,4,8,16,32    V1,V2
regnet_y_32gf      141_705_070  32_276_212_032  224      3712 yes  32,232,696,1392,3712     2,4,8,16,32    V1,V2,SWAG_E2E_V1,SWAG_LINEAR_V1
regnet_y_3_2gf      18_074_638   3_175_121_952  224      1512 yes  32,72,216,576,1512       2,4,8,16,32    V1,V2
regnet_y_400mf       3_947_244     401_446_848  224       440 yes  32,48,104,208,440        2,4,8,16,32    V1,V2
regnet_y_800mf       5_726_012     833_150_656  224       784 yes  32,64,144,320,784        2,4,8,16,32    V1,V2
regnet_y_8gf        37_566_172   8_471_256_192  224      2016 yes  32,224,448,896,2016      2,4,8,16,32    V1,V2
resnet101           42_705_060   7_799_562_240  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1,V2
resnet152           58_348_708  11_511_783_424  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1,V2
resnet18            11_227_812   1_813_612_544  224       512 yes  64,64,128,256,512        2,4,8,16,32    V1
resnet34            21_335_972   3_663_300_608  224       512 yes  64,64,128,256,512        2,4,8,16,32    V1
resnet50            23_712_932   4_087_341_056  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1,V2
resnext101_32x8d    86_947_236  16_412_172_288  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1,V2
resnext101_64x4d    81_611_172  15_458_426_880  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1
resnext50_32x4d     23_184_804   4_228_636_672  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1,V2
shufflenet_v2_x0_5     444_292      39_554_848  224      1024 no   24,48,96,192             2,8,16,32      V1
shufflenet_v2_x1_0   1_356_104     143_986_392  224      1024 no   24,116,232,464           2,8,16,32      V1
shufflenet_v2_x1_5   2_581_124     294_837_792  224      1024 no   24,176,352,704           2,8,16,32      V1
shufflenet_v2_x2_0   5_549_896     581_410_264  224      2048 no   24,244,488,976           2,8,16,32      V1
squeezenet1_0          786_724     741_049_376  224       512 no   96,256,512,512           2,4,8,16       V1
squeezenet1_1          773_796     271_276_736  224       512 no   64,128,256,512           2,4,8,16       V1
swin_b              86_845_724  15_430_025_216  224      1024 yes  128,128,256,512,1024     4,4,8,16,32    V1
swin_s              48_914_158   8_740_184_064  224       768 yes  96,96,192,384,768        4,4,8,16,32    V1
swin_t              27_596_254   4_489_875_456  224       768 yes  96,96,192,384,768        4,4,8,16,32    V1
swin_v2_b           87_008_348  20_324_212_736  256      1024 yes  128,128,256,512,1024     4,4,8,16,32    V1
swin_v2_s           49_045_342  11_545_165_824  256       768 yes  96,96,192,384,768        4,4,8,16,32    V1
swin_v2_t           27_659_470   5_938_999_296  256       768 yes  96,96,192,384,768        4,4,8,16,32    V1
vgg11              129_176_036   7_605_403_648  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vgg11_bn           129_181_540   7_605_403_648  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vgg13              129_360_548  11_304_779_776  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vgg13_bn           129_366_436  11_304_779_776  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vgg16              134_670_244  15_466_577_920  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vgg16_bn           134_678_692  15_466_577_920  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vgg19              139_979_940  19_628_376_064  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vgg19_bn           139_990_948  19_628_376_064  224      4096 no   64,128,256,512,512       1,2,4,8,16     V1
vit_b_16            85_875_556  17_563_137_024  224       768 no   768,768,768,768,768      16,16,16,16,16 V1,SWAG_LINEAR_V1
vit_b_32            87_532_132   4_408_495_104  224       768 no   768,768,768,768,768      32,32,32,32,32 V1
vit_h_14           630_892_900 167_293_957_120  224      1280 no   1280,1280,1280,1280,1280 14,14,14,14,14 SWAG_LINEAR_V1
vit_l_16           303_404_132  61_553_790_976  224      1024 no   1024,1024,1024,1024,1024 16,16,16,16,16 V1,SWAG_LINEAR_V1
vit_l_32           305_612_900  15_376_617_472  224      1024 no   1024,1024,1024,1024,1024 32,32,32,32,32 V1
wide_resnet101_2   125_042_596  22_751_207_424  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1,V2
wide_resnet50_2     67_039_140  11_396_177_920  224      2048 yes  64,256,512,1024,2048     2,4,8,16,32    V1,V2
"""  # noqa: E501


EXACT = ("vit", "maxvit")
"""Networks that take images of one size."""
LEAST = {
    "inception_v3": 75,
    "alexnet": 63,
    "efficientnet_v2": 33,
    "vgg": 32,
    "convnext": 32,
    "densenet": 29,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "googlenet": 15,
}
"""The smallest side of an image, by the beginning of a network's name."""


def _sides(name: str, side: int) -> tuple[int, int | None]:
    if name.startswith(EXACT):
        return side, side
    return next((least for beginning, least in LEAST.items() if name.startswith(beginning)), 1), None


def _card(row: str) -> tuple[str, ModelCard]:
    name, params, madds, side, embedding, mean, channels, strides, weights = row.split()
    card = ModelCard(
        params=int(params),
        taps=("stem", *(f"stage{i}" for i in range(1, len(channels.split(","))))),
        channels=tuple(map(int, channels.split(","))),
        embedding=int(embedding),
        strides=tuple(map(int, strides.split(","))),
        preacts=False,
        norms=False,
        pools_last=mean == "yes",
        madds=int(madds),
        side=int(side),
        sides=_sides(name, int(side)),
        weights=tuple(f"IMAGENET1K_{tag}" for tag in weights.split(",")),
    )
    return PREFIX + name, card


CARDS: dict[str, ModelCard] = dict(map(_card, TABLE.strip().splitlines()[1:]))


def build(name: str, classes: int, channels: int) -> nn.Module:
    """The network `name` of `CARDS`, freshly initialised from torch's global generator."""
    short = name.removeprefix(PREFIX)
    options = {"aux_logits": False, "init_weights": True} if short in ("googlenet", "inception_v3") else {}
    with Widths() if short.startswith("regnet") else nullcontext():
        network = models.get_model(short, weights=None, num_classes=classes, **options)
    if channels != 3:
        _replace_entry(network, channels)
    layout = layout_of(short)
    return layout.kind(network, layout)


def pretrained(name: str, weights: str) -> dict[str, Tensor]:
    """The published weights of the network `name`, fetched once into torch's hub folder and checked against their hash.

    The classifier has ImageNet's 1000 classes. googlenet and inception_v3 saw pixels scaled to -1..1 (mean and standard
    deviation 0.5), all others pixels normalised by ImageNet's mean and standard deviation.

    Args:
        name: a model of this family.
        weights: one of its card's `weights`, `IMAGENET1K_V1` say.

    Raises:
        CheckpointError: there are no such weights, or they cannot be fetched or read.
    """
    offered = CARDS[name].weights
    if weights not in offered:
        there = f"there is {', '.join(offered)}.{did_you_mean(weights, offered)}"
        raise CheckpointError(f"torchvision has no weights {weights!r} for {name}; {there}")
    entry = models.get_model_weights(name.removeprefix(PREFIX))[weights]
    try:
        state = entry.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise CheckpointError(f"{name}, {weights}: {error}. Put the file {entry.url} into {folder}") from error
    return _plain(state)


class Widths(TorchFunctionMode):
    """RegNet computes its widths with tensors, which must have values where the network itself has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **(options | (kwargs or {})))


class Layout(NamedTuple):
    """Where a network's taps lie. Each text names its modules in the order in which they run.

    `features.2:5` are children 2 to 4 of `features`; `mean()` and its like are functions of `FUNCTIONS`.
    """

    stages: tuple[str, ...]
    """What runs up to each tap."""
    tail: str
    """From the last tap to the embedding."""
    head: str
    """From the embedding to the logits."""
    kind: type[Tapped]
    mean: bool = False
    """Whether the embedding is the mean of the last tap."""


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean()": lambda x: x.mean((2, 3)),
    "flatten()": lambda x: x.flatten(1),
    "relu()": F.relu,
    "first()": lambda x: x[:, 0],
}


class Tapped(nn.Module):
    """A torchvision network's own modules, under their own names, run so that every tap is kept."""

    def __init__(self, network: nn.Module, layout: Layout) -> None:
        super().__init__()
        self._version = network._version  # of the state dict: MNASNet asks for it
        self.stages = tuple(_steps(network, stage) for stage in layout.stages)
        self.tail, self.last = _steps(network, layout.tail), _steps(network, layout.head)
        self.taps = ("stem", *(f"stage{i}" for i in range(1, len(self.stages))))
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in network.named_children():
            self.add_module(name, child)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.inplace = False  # it would write over the embedding

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) and return every tap on the way."""
        x, features = self.enter(image), []
        for steps in self.stages:
            x = self.run(steps, x)
            features.append(self.as_map(x))
        embedding_BD, logits_BK = self.classify(x)
        return ModelOutput(logits_BK, embedding_BD, tuple(features), (), self.taps)

    def run(self, steps: tuple[str, ...], x: Tensor) -> Tensor:
        """`x` after the named modules and functions."""
        for step in steps:
            x = FUNCTIONS[step](x) if step in FUNCTIONS else self.get_submodule(step)(x)
        return x

    def enter(self, image: Tensor) -> Tensor:
        """What the first module takes."""
        return image

    def as_map(self, x: Tensor) -> Tensor:
        """A tap as (B, C, H, W)."""
        return x

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (B, D) and logits (B, K) from the last tap."""
        embedding_BD = self.run(self.tail, x)
        return embedding_BD, self.run(self.last, embedding_BD)


class MapClassifier(Tapped):
    """SqueezeNet: the classifier is a convolution over the last map, and the mean comes after it."""

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last map's mean, and the mean of each place's logits."""
        return self.run(self.tail, x), self.run(self.last, x)


class ChannelsLast(Tapped):
    """Swin: maps inside are (B, H, W, C)."""

    def as_map(self, x: Tensor) -> Tensor:
        """The tap with its channels in second place."""
        return x.permute(0, 3, 1, 2)


class Tokens(Tapped):
    """ViT: tokens (B, 1 + N, C), the first of them the class token, for images of one size alone."""

    conv_proj: nn.Conv2d
    class_token: Tensor
    encoder: Any

    def enter(self, image: Tensor) -> Tensor:
        """The image's tokens with their positions."""
        patches_BNC = self.conv_proj(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), patches_BNC], 1)
        positions = self.encoder.pos_embedding
        if tokens.shape[1:] != positions.shape[1:]:
            side = math.isqrt(positions.shape[1] - 1) * self.conv_proj.stride[0]
            raise OtkdError(f"this ViT takes images of {side} × {side} pixels; got {tuple(image.shape[2:])}")
        positioned: Tensor = self.encoder.dropout(tokens + positions)
        return positioned

    def as_map(self, x: Tensor) -> Tensor:
        """The patches' tokens in their places."""
        side = math.isqrt(x.shape[1] - 1)
        return x[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _cut(path: str, *ends: int) -> tuple[str, ...]:
    """Children of `path` from the first to `ends[0]`, from there to `ends[1]`, and so on."""
    return tuple(f"{path}.{begin}:{end}" for begin, end in zip((0, *ends), ends, strict=False))


def _vgg(*pools: int) -> Layout:
    tail = f"features.{pools[-1]} avgpool flatten() classifier.0:5"
    return Layout(_cut("features", *pools), tail, "classifier.5:7", Tapped)


def _mobile(*ends: int, tail: str, head: str) -> Layout:
    return Layout(_cut("features", *ends), f"features.{ends[-1]} {tail}", head, Tapped)


def _vit(depth: int) -> Layout:
    quarters = _cut("encoder.layers", *(depth * i // 4 for i in range(1, 5)))
    return Layout(("", *quarters[:3], f"{quarters[3]} encoder.ln"), "first()", "heads", Tokens)


SWIN = (*_cut("features", 1, 2, 4, 6), "features.6:8 norm")
DENSE = (
    *("features.conv0 features.norm0 features.relu0", "features.pool0 features.denseblock1"),
    *(f"features.transition{i} features.denseblock{i + 1}" for i in (1, 2)),
    "features.transition3 features.denseblock4 features.norm5 relu()",
)
RESNET = ("conv1 bn1 relu", "maxpool layer1", "layer2", "layer3", "layer4")
REGNET = ("stem", *(f"trunk_output.block{i}" for i in range(1, 5)))
SHUFFLE = ("conv1", "maxpool stage2", "stage3", "stage4")
MNAS = _cut("layers", 3, 9, 10, 12, 14)
GOOGLE = (
    "conv1",
    "maxpool1 conv2 conv3",
    "maxpool2 inception3a inception3b",
    "maxpool3 inception4a inception4b inception4c inception4d inception4e",
    "maxpool4 inception5a inception5b",
)
INCEPTION = (
    "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3",
    "maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3",
    "maxpool2 Mixed_5b Mixed_5c Mixed_5d",
    "Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e",
    "Mixed_7a Mixed_7b Mixed_7c",
)
ALEXNET = "features.12 avgpool flatten() classifier.0:6"

LAYOUTS = {
    "alexnet": Layout(_cut("features", 2, 5, 12), ALEXNET, "classifier.6", Tapped),
    "convnext": Layout(_cut("features", 1, 2, 4, 6, 8), "avgpool classifier.0:2", "classifier.2", Tapped),
    "densenet": Layout(DENSE, "mean()", "classifier", Tapped, mean=True),
    "efficientnet_b": _mobile(1, 3, 4, 6, 8, tail="mean()", head="classifier"),
    "efficientnet_v2_s": _mobile(1, 3, 4, 6, 7, tail="mean()", head="classifier"),
    "efficientnet_v2": _mobile(1, 3, 4, 6, 8, tail="mean()", head="classifier"),
    "googlenet": Layout(GOOGLE, "mean()", "dropout fc", Tapped, mean=True),
    "inception_v3": Layout(INCEPTION, "mean()", "dropout fc", Tapped, mean=True),
    "maxvit": Layout(("stem", *_cut("blocks", 1, 2, 3, 4)), "classifier.0:5", "classifier.5", Tapped),
    "mnasnet": Layout(MNAS, "layers.14:17 mean()", "classifier", Tapped),
    "mobilenet_v2": _mobile(1, 4, 7, 14, 18, tail="mean()", head="classifier"),
    "mobilenet_v3_large": _mobile(1, 4, 7, 13, 16, tail="mean() classifier.0:2", head="classifier.2:4"),
    "mobilenet_v3_small": _mobile(1, 2, 4, 9, 12, tail="mean() classifier.0:2", head="classifier.2:4"),
    "regnet": Layout(REGNET, "mean()", "fc", Tapped, mean=True),
    "resn": Layout(RESNET, "mean()", "fc", Tapped, mean=True),
    "shufflenet": Layout(SHUFFLE, "conv5 mean()", "fc", Tapped),
    "squeezenet1_0": Layout(_cut("features", 2, 6, 11, 13), "mean()", "classifier flatten()", MapClassifier),
    "squeezenet1_1": Layout(_cut("features", 2, 5, 8, 13), "mean()", "classifier flatten()", MapClassifier),
    "swin": Layout(SWIN, "permute avgpool flatten", "head", ChannelsLast, mean=True),
    "vgg11_bn": _vgg(3, 7, 14, 21, 28),
    "vgg11": _vgg(2, 5, 10, 15, 20),
    "vgg13_bn": _vgg(6, 13, 20, 27, 34),
    "vgg13": _vgg(4, 9, 14, 19, 24),
    "vgg16_bn": _vgg(6, 13, 23, 33, 43),
    "vgg16": _vgg(4, 9, 16, 23, 30),
    "vgg19_bn": _vgg(6, 13, 26, 39, 52),
    "vgg19": _vgg(4, 9, 18, 27, 36),
    "vit_b": _vit(12),
    "vit_l": _vit(24),
    "vit_h": _vit(32),
    "wide_resnet": Layout(RESNET, "mean()", "fc", Tapped, mean=True),
}
"""By the beginning of a network's name; the first that fits."""


def layout_of(name: str) -> Layout:
    """The layout of torchvision's network `name`."""
    return next(layout for beginning, layout in LAYOUTS.items() if name.startswith(beginning))


def card_of(network: nn.Module, side: int, pools_last: bool) -> ModelCard:
    """The card of a network of 100 classes on the meta device, which computes shapes and operations but no numbers."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out: ModelOutput = network.eval()(torch.zeros(1, 3, side, side, device="meta"))
    strides, fixed = _strides(network, side, out)
    return ModelCard(
        params=sum(parameter.numel() for parameter in network.parameters()),
        taps=out.taps,
        channels=tuple(tap.shape[1] for tap in out.features),
        embedding=out.embedding.shape[1],
        strides=strides,
        preacts=False,
        norms=False,
        pools_last=pools_last,
        madds=counter.get_total_flops() // 2,
        side=side,
        sides=(side, side) if fixed else (1, None),
    )


def _strides(network: nn.Module, side: int, out: ModelOutput) -> tuple[tuple[int, ...], bool]:
    """By how much the image grows for each place that a tap gains; of networks for one size, side over side.

    Whether it is for one size comes with it.
    """
    sides = [tap.shape[-1] for tap in out.features]
    try:
        with torch.no_grad():
            larger: ModelOutput = network(torch.zeros(1, 3, side + 320, side + 320, device="meta"))
    except (OtkdError, AssertionError, RuntimeError):
        return tuple(side // tap for tap in sides), True
    return tuple(320 // (tap.shape[-1] - before) for tap, before in zip(larger.features, sides, strict=True)), False


def _steps(network: nn.Module, text: str) -> tuple[str, ...]:
    """The single modules that a text of `Layout` names."""
    steps: list[str] = []
    for word in text.split():
        path, _, last = word.rpartition(".")
        if ":" in last:
            children = [name for name, _ in network.get_submodule(path).named_children()]
            steps += [f"{path}.{name}" for name in children[slice(*map(int, last.split(":")))]]
        else:
            steps.append(word)
    return tuple(steps)


def _replace_entry(network: nn.Module, channels: int) -> None:
    """Give the first convolution so many input channels, with weights of the same spread as those that it had."""
    path, old = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    shape: Any = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    new = nn.Conv2d(channels, old.out_channels, **shape, bias=False)
    with torch.no_grad():
        nn.init.normal_(new.weight).mul_(old.weight.std())
    new.bias = old.bias
    network.set_submodule(path, new)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without auxiliary classifiers, and with DenseNet's old names (`norm.1`) as they are now (`norm1`)."""
    for key in list(state):
        tensor = state.pop(key)
        if not key.startswith(("aux1.", "aux2.", "AuxLogits.")):
            state[re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key)] = tensor
    return state
