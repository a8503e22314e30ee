"""Folded batch norms, against the networks as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from otkd.core.output import ModelOutput
from otkd.models.factory import create
from otkd.train.fold import folded

NETWORKS = {
    "resnet14": 0,
    "resnet8x4": 0,
    "ResNet50": 0,
    "wrn_16_2": 7,
    "vgg8": 0,
    "MobileNetV2": 0,
    "ShuffleV1": 0,
    "ShuffleV2": 0,
    "torchvision/resnet18": 0,
    "torchvision/shufflenet_v2_x0_5": 0,
    "torchvision/densenet121": 62,
    "torchvision/regnet_y_400mf": 0,
    "torchvision/googlenet": 0,
}
"""How many batch norms are left. Those of wrn and DenseNet come before a ReLU and a convolution, not after one."""


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, its batch norms with statistics and factors of their own as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in norms(model):
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.normal_(0.8, 0.3, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.affine]


def network(name: str) -> nn.Module:
    return settled(create(name, classes=7, channels=3, seed=0))


def images(height: int = 32, width: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def tensors(out: ModelOutput) -> dict[str, Tensor]:
    preacts = {f"preact of {name}": tensor for name, tensor in zip(out.taps[1:], out.preacts, strict=False)}
    return {
        "logits": out.logits,
        "embedding": out.embedding,
        **dict(zip(out.taps, out.features, strict=True)),
        **preacts,
    }


@torch.no_grad()
def far(one: nn.Module, other: nn.Module, image: Tensor) -> float:
    """The largest distance of any output, relative to the largest number in it."""
    outs, others = tensors(one(image)), tensors(other(image))
    assert list(outs) == list(others)
    return max(float((outs[name] - others[name]).abs().max() / outs[name].abs().max()) for name in outs)


@pytest.mark.parametrize(("name", "left"), NETWORKS.items())
def test_every_output_is_the_same(name: str, left: int) -> None:
    model = network(name).double()
    made = folded(model)
    assert sum(isinstance(module, _BatchNorm) for module in made.modules()) == left
    side = 32 if "dense" in name else 16
    assert far(model, made, images(side, side, torch.float64)) < 1e-10
    assert far(model.float(), made.float(), images(side, side)) < 1e-4


@pytest.mark.parametrize("side", [32, 64])
def test_a_branch_on_the_images_size_still_goes_both_ways(side: int) -> None:
    """vgg pools once more from 64 pixels on."""
    model = network("vgg8").double()
    made = folded(model)
    with torch.no_grad():
        assert made(images(side, side, torch.float64)).features[-1].shape[-1] == 4
    assert far(model, made, images(side, side, torch.float64)) < 1e-10


def test_the_original_is_as_it_was() -> None:
    model = network("resnet8").train()
    before = copy.deepcopy(model.state_dict())
    made = folded(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in network("resnet8").modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in made.modules())
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_the_copy_shares_no_memory() -> None:
    model = network("wrn_16_1")
    made = folded(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in model.parameters() if parameter.dim() == 4)


def test_channels_last_is_kept() -> None:
    model = network("resnet8").to(memory_format=torch.channels_last)
    made = folded(model)
    convs = [module for module in made.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)
    out = made(images().contiguous(memory_format=torch.channels_last))
    assert all(feature.is_contiguous(memory_format=torch.channels_last) for feature in out.features)
    assert far(model, made, images()) < 1e-4


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_1"])
def test_bfloat16_is_as_near_to_single_precision_as_before(name: str) -> None:
    model = network(name)
    made = folded(model)

    def half(module: nn.Module) -> Callable[[Tensor], ModelOutput]:
        def run(image: Tensor) -> ModelOutput:
            with torch.autocast("cpu", torch.bfloat16):
                return module(image)

        return run

    assert half(made)(images()).features[-1].dtype == torch.bfloat16
    assert far(model, half(made), images()) < 2 * far(model, half(model), images())  # type: ignore[arg-type]


class Plain(nn.Module):
    """A convolution, a batch norm and a linear layer, to be put together in ways that our networks do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 7)

    def forward(self, image: Tensor) -> ModelOutput:
        raw = self.conv(image)
        return self.finish(raw, self.norm(raw))

    def finish(self, tap: Tensor, normed: Tensor) -> ModelOutput:
        embedding = F.relu(normed).mean((2, 3))
        return ModelOutput(self.fc(embedding), embedding, (tap,), (), ("stem",))


class Folding(Plain):
    """Only the batch norm reads the convolution; its output is a tap."""

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed, normed)


class Twice(Plain):
    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed, self.norm(self.conv(image.flip(-1))))


class OneNormForTwo(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 5, 1)

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed, self.norm(self.other(image)))


class InOneBranch(Plain):
    """Shows the convolution's own output for images of more than 20 pixels alone."""

    def forward(self, image: Tensor) -> ModelOutput:
        raw = self.conv(image)
        normed = self.norm(raw)
        return self.finish(raw if image.shape[-1] > 20 else normed, normed)


class InTheOtherBranch(Plain):
    def forward(self, image: Tensor) -> ModelOutput:
        raw = self.conv(image)
        normed = self.norm(raw)
        return self.finish(normed if image.shape[-1] > 20 else raw, normed)


class ReadsWeights(Plain):
    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed + self.conv.weight.mean(), normed)


class ReadsStatistics(Plain):
    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed + self.norm.running_mean.mean(), normed)


class ReadsShape(Plain):
    """Asks for more of the convolution's output than a batch norm would."""

    def forward(self, image: Tensor) -> ModelOutput:
        raw = self.conv(image)
        return self.finish(image, self.norm(raw) + raw.amax())


class Own(nn.BatchNorm2d):
    """timm's and others' have a ReLU of their own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Activated(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Own(5)

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed, normed)


class Forgetful(Plain):
    """Normalises by the batch at hand, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(5, affine=False, track_running_stats=False)

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed, normed)


class Reparametrised(Folding):
    """The convolution's weights are computed anew at every call."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.conv)


class Hooked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda module, given, output: output.clamp(-0.1, 0.1))

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        return self.finish(normed, normed)


class Looping(Plain):
    """Cannot be traced: how often it goes round depends on the image."""

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        for _ in range(int(image.shape[-1]) // 9):
            normed = normed * 1.5
        return self.finish(normed, normed)


class ManyWays(Plain):
    """Cannot be traced either: it asks without end."""

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.norm(self.conv(image))
        for size in range(1, 9):
            normed = normed * 1.5 if image.shape[-1] > 5 * size else normed
        return self.finish(normed, normed)


LEFT_ALONE = (
    Plain, Twice, OneNormForTwo, InOneBranch, InTheOtherBranch, ReadsWeights, ReadsStatistics, ReadsShape, Activated,
    Forgetful, Reparametrised, Hooked, Looping, ManyWays,
)  # fmt: skip


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_cannot_be_folded_is_left_alone(kind: type[Plain]) -> None:
    torch.manual_seed(0)
    model = settled(kind()).double()
    made = folded(model)
    assert any(isinstance(module, _BatchNorm) for module in made.modules())
    assert not made.training
    for width in (13, 27):
        assert far(model, made, images(17, width, torch.float64)) == 0


class TwoNames(Folding):
    """Its batch norm goes by two names, of which tracing sees the first alone and the forward pass uses the second."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.norm

    def forward(self, image: Tensor) -> ModelOutput:
        normed = self.alias(self.conv(image))
        return self.finish(normed, normed)


class SharedWeight(Folding):
    """Another convolution has the same weights, and no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 5, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, image: Tensor) -> ModelOutput:
        return self.finish(self.other(image), self.norm(self.conv(image)))


@pytest.mark.parametrize("kind", [Folding, TwoNames, SharedWeight])
def test_what_can_be_folded_is(kind: type[Plain]) -> None:
    torch.manual_seed(0)
    model = settled(kind()).double()
    made = folded(model)
    assert not any(isinstance(module, _BatchNorm) for module in made.modules())
    assert far(model, made, images(17, 13, torch.float64)) < 1e-12


@settings(max_examples=20, deadline=None)
@given(
    groups=st.sampled_from([1, 3]),
    bias=st.booleans(),
    affine=st.booleans(),
    padding=st.sampled_from(["zeros", "reflect", "circular"]),
    stride=st.integers(1, 3),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_any_convolution_and_batch_norm(
    groups: int, bias: bool, affine: bool, padding: str, stride: int, eps: float
) -> None:
    torch.manual_seed(0)
    model = Folding()
    model.conv = nn.Conv2d(3, 9, (3, 5), stride, (1, 2), groups=groups, bias=bias, padding_mode=padding)
    model.norm, model.fc = nn.BatchNorm2d(9, eps=eps, affine=affine), nn.Linear(9, 7)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(1e-3, 2)
    model = settled(model).double()
    assert far(model, folded(model), images(17, 13, torch.float64)) < 1e-10


def test_timms_networks_fold_where_their_batch_norms_are_torchs() -> None:
    pytest.importorskip("timm")
    for name, left in (("resnet18", 0), ("mobilenetv3_small_050", 34)):
        model = network(f"timm/{name}").double()
        made = folded(model)
        assert sum(isinstance(module, _BatchNorm) for module in made.modules()) == left
        assert far(model, made, images(64, 64, torch.float64)) < 1e-10


def test_outputs_serve_gradients_of_a_student() -> None:
    made = folded(network("resnet8"))
    with torch.no_grad():
        target = made(images()).features[-1]
    map_s = torch.randn(target.shape, generator=torch.Generator().manual_seed(2), requires_grad=True)
    F.mse_loss(map_s * target, target).backward()
    assert map_s.grad is not None
    assert map_s.grad.isfinite().all()
