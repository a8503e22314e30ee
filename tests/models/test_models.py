"""Every network against its card, the published parameter lists, torchvision and the contract of `ModelOutput`."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from otkd.core import plugins
from otkd.core.errors import OtkdError
from otkd.core.output import ModelOutput
from otkd.models.factory import create

CARDS = {name: card for name, card in plugins.cards("models").items() if "/" not in name}
"""All networks but those of packages, `torchvision/…`, which have test files of their own."""
REFERENCE = json.loads(Path(__file__).with_name("repdistiller_shapes.json").read_text())
FIRSTS = list({plugins.family_of(name): name for name in reversed(CARDS)}.values())
"""One network of each family."""
every_model = pytest.mark.parametrize("name", CARDS)
every_family = pytest.mark.parametrize("name", FIRSTS)
reference_models = pytest.mark.parametrize("name", REFERENCE["sha256"])


def network(name: str, classes: int = 100, channels: int = 3, seed: int = 0) -> nn.Module:
    return create(name, classes=classes, channels=channels, seed=seed)


@cache
def shapeless(name: str, classes: int = 100, channels: int = 3) -> nn.Module:
    """The network without memory for its weights: what depends on shapes alone costs nothing."""
    with torch.device("meta"):
        model: nn.Module = plugins.load("models", plugins.family_of(name)).build(name, classes, channels)
    return model.eval()


def small(name: str) -> int:
    """A side that is enough for the network: a quarter of that which it is meant for."""
    return max(8, CARDS[name].side // 4)


def settled(name: str, side: int = 16, seed: int = 0) -> tuple[nn.Module, Tensor, ModelOutput]:
    """A network in eval mode with batch norms as if it had been trained, images, and its output for them."""
    generator = torch.Generator().manual_seed(seed)
    model = network(name, seed=seed).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, centre in ((norm.weight, 1.0), (norm.bias, 0.0), (norm.running_mean, 0.0), (norm.running_var, 1.0)):
            tensor.data = centre + 0.2 * (torch.rand(tensor.shape, generator=generator) - 0.5)
    image = torch.randn(2, 3, side, side, generator=generator)
    with torch.no_grad():
        return model, image, model(image)


def sha256(value: object, sort_keys: bool = False) -> str:
    text = json.dumps(value, sort_keys=sort_keys, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- cards


@every_model
def test_card_counts_parameters(name: str) -> None:
    assert sum(p.numel() for p in shapeless(name).parameters()) == CARDS[name].params


@every_model
def test_card_counts_multiply_adds(name: str) -> None:
    side = CARDS[name].side
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapeless(name)(torch.zeros(1, 3, side, side, device="meta"))
    assert counter.get_total_flops() == 2 * CARDS[name].madds


@every_model
def test_card_tells_strides(name: str) -> None:
    side = CARDS[name].side
    out = shapeless(name)(torch.zeros(1, 3, side, side, device="meta"))
    assert tuple(side / f.shape[2] for f in out.features) == CARDS[name].strides


@every_model
@pytest.mark.parametrize(("quarters", "more", "channels", "classes"), [(4, 0, 3, 100), (1, 0, 1, 10), (2, -1, 3, 7)])
def test_card_describes_output(name: str, quarters: int, more: int, channels: int, classes: int) -> None:
    card, side = CARDS[name], quarters * small(name) + more
    out = shapeless(name, classes, channels)(torch.zeros(2, channels, side, side, device="meta"))
    assert isinstance(out, ModelOutput)
    assert out.logits.shape == (2, classes)
    assert out.embedding.shape == (2, card.embedding)
    assert out.taps == card.taps
    assert tuple(f.shape[1] for f in out.features) == card.channels
    assert [p.shape for p in out.preacts] == ([f.shape for f in out.stages] if card.preacts else [])
    assert all(f.shape[2] == f.shape[3] for f in out.features)


@every_model
def test_card_tells_whether_norms_are_named(name: str) -> None:
    norms = getattr(shapeless(name), "norms", ())
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    assert [norm.num_features for norm in norms] == (list(CARDS[name].channels[1:]) if CARDS[name].norms else [])


@every_family
def test_card_tells_whether_the_last_stage_is_pooled(name: str) -> None:
    _, _, out = settled(name, 2 * small(name))
    pooled = F.relu((out.preacts or out.stages)[-1]).mean((2, 3))
    same = pooled.shape == out.embedding.shape and torch.allclose(pooled, out.embedding, atol=1e-5)
    assert same == CARDS[name].pools_last


# --- the contract


@every_model
def test_taps_survive_a_training_step(name: str) -> None:
    """Every tap takes a gradient and no preact is a ReLU's output: none was overwritten after it was handed out."""
    model = network(name, classes=5, channels=1)
    out = model(torch.randn(2, 1, small(name), small(name)))
    taps = [out.logits, out.embedding, *out.features, *out.preacts]
    sum(tap.square().mean() for tap in taps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all((preact < 0).any() for preact in out.preacts)
    assert {m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)} <= {1}


@every_family
def test_norms_stand_right_before_the_preacts(name: str) -> None:
    """A stage's batch norm shifted by 1 shifts the stage's preact by 1, and none before it."""
    model, image, before = settled(name, 2 * small(name))
    for stage, norm in enumerate(getattr(model, "norms", ())):
        shift = norm.bias.data
        norm.bias.data = shift + 1
        with torch.no_grad():
            after = model(image)
        norm.bias.data = shift
        torch.testing.assert_close(after.preacts[stage], before.preacts[stage] + 1)
        assert all(map(torch.equal, after.preacts[:stage], before.preacts[:stage]))


@every_family
def test_seed_alone_decides_weights(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = network(name, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = network(name, seed=3).state_dict(), network(name, seed=4).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@every_family
def test_state_dict_is_all_there_is(name: str) -> None:
    model, image, out = settled(name, small(name))
    other = network(name, seed=1).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(image).logits, out.logits)


@reference_models
def test_state_dict_is_repdistillers(name: str) -> None:
    listing = {key: list(value.shape) for key, value in shapeless(name).state_dict().items()}
    if name in REFERENCE["listing"]:
        assert listing == REFERENCE["listing"][name]
    assert sha256(listing, sort_keys=True) == REFERENCE["sha256"][name]
    assert sha256(list(listing)) == REFERENCE["order"][name]


def test_all_of_repdistillers_networks_are_there() -> None:
    """22 networks of 101,046,482 parameters together."""
    assert len(REFERENCE["sha256"]) == 22
    assert sum(CARDS[name].params for name in REFERENCE["sha256"]) == 101_046_482


# --- taps by family


@pytest.mark.parametrize("name", ["resnet14", "resnet8x4", "ResNet50", "vgg8", "vgg13", "ShuffleV1"])
def test_features_are_preacts_after_relu(name: str) -> None:
    _, _, out = settled(name)
    for preact, feature in zip(out.preacts, out.stages, strict=True):
        assert torch.equal(F.relu(preact), feature)
    assert (out.features[0] >= 0).all()
    torch.testing.assert_close(out.embedding, out.features[-1].mean((2, 3)))


@pytest.mark.parametrize("name", ["wrn_16_1", "wrn_16_2"])
def test_wrn_preacts_are_sums_after_the_next_batch_norm(name: str) -> None:
    model, image, out = settled(name)
    with torch.no_grad():
        norms = [model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1]
        for norm, preact, feature in zip(norms, out.preacts, out.stages, strict=True):
            assert torch.equal(norm(feature), preact)
        assert torch.equal(model.conv1(image), out.features[0])
        torch.testing.assert_close(out.embedding, F.relu(out.preacts[-1]).mean((2, 3)))
    assert model.norms == tuple(norms)
    assert all((feature < 0).any() for feature in out.features)


def test_mobilenet_hands_out_signed_bottlenecks() -> None:
    """After blocks 1, 2, 4 and 6, counted from 0, and the same as preacts; the embedding is 1280 wide and positive."""
    model, _, out = settled("MobileNetV2", 32)
    x = out.features[0]
    taps = []
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            x = block(x)
            taps += [x] if i in (1, 2, 4, 6) else []
        embedding = model.conv2(x).mean((2, 3))
    assert all(map(torch.equal, taps, out.stages))
    assert all(preact is feature for preact, feature in zip(out.preacts, out.stages, strict=True))
    assert all((feature < 0).any() for feature in out.stages)
    assert (out.features[0] >= 0).all()
    torch.testing.assert_close(out.embedding, embedding)
    assert (embedding >= 0).all()
    assert model.norms == tuple(model.blocks[i][-1].conv[-1] for i in (1, 2, 4, 6))


def test_shufflenetv2_preacts_are_joined_before_the_shuffle() -> None:
    """The passed half, after an earlier ReLU, and the computed half, before its own; the tap has them in turn."""
    _, _, out = settled("ShuffleV2")
    for preact, feature in zip(out.preacts, out.stages, strict=True):
        passed, computed = preact.chunk(2, 1)
        assert (passed >= 0).all()
        assert (computed < 0).any()
        assert torch.equal(feature[:, 0::2], passed)
        assert torch.equal(feature[:, 1::2], F.relu(computed))
    assert (out.features[0] >= 0).all()
    assert (out.embedding >= 0).all()


@pytest.mark.parametrize(("side", "sides"), [(32, [32, 16, 8, 4, 4]), (64, [64, 32, 16, 8, 4]), (8, [8, 4, 2, 1, 1])])
def test_vgg_pools_before_its_last_block_from_64_pixels_on(side: int, sides: list[int]) -> None:
    out = shapeless("vgg8")(torch.zeros(1, 3, side, side, device="meta"))
    assert [f.shape[-1] for f in out.features] == sides


# --- values against other implementations


def transplant(tensors: Iterable[Tensor], peer: nn.Module) -> nn.Module:
    """`peer` with the weights `tensors`, matched by their order."""
    peer.load_state_dict(dict(zip(peer.state_dict(), tensors, strict=True)))
    return peer.eval()


def vgg_peer(name: str, side: int) -> nn.Module:
    """torchvision's configuration without the pools that small images cannot have."""
    published = torchvision.models.vgg.cfgs
    shortest = [64, "M", 128, "M", 256, "M", 512, "M", 512, "M"]
    config = {"vgg8": shortest, "vgg11": published["A"], "vgg13": published["B"]}[name]
    pools = [i for i, item in enumerate(config) if item == "M"]
    dropped = pools[-1:] if side == 64 else pools[-2:]
    layers = torchvision.models.vgg.make_layers([v for i, v in enumerate(config) if i not in dropped], batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))


@pytest.mark.parametrize(("name", "side"), [("vgg8", 16), ("vgg8", 64), ("vgg11", 9), ("vgg13", 15)])
def test_vgg_computes_as_torchvisions(name: str, side: int) -> None:
    model, image, out = settled(name, side)
    with torch.no_grad():
        torch.testing.assert_close(out.logits, transplant(model.state_dict().values(), vgg_peer(name, side))(image))


def resnet50_peer() -> nn.Module:
    peer = torchvision.models.resnet50(num_classes=100)
    peer.conv1, peer.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return peer


def shufflenetv2_peer() -> nn.Module:
    peer = torchvision.models.shufflenet_v2_x1_0(num_classes=100)
    peer.conv1[0], peer.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    return peer


@pytest.mark.parametrize(("name", "peer"), [("ResNet50", resnet50_peer), ("ShuffleV2", shufflenetv2_peer)])
def test_computes_as_torchvisions_with_a_small_stem(name: str, peer: Callable[[], nn.Module]) -> None:
    model, image, out = settled(name, 15)
    with torch.no_grad():
        torch.testing.assert_close(out.logits, transplant(model.state_dict().values(), peer())(image))


def test_mobilenet_computes_as_torchvisions() -> None:
    """With ReLU in place of ReLU6, and the first block's expansion, which torchvision leaves out, doing nothing."""
    model, image, _ = settled("MobileNetV2", 31)
    first, norm = model.blocks[0][0].conv[:2]
    first.weight.data = torch.eye(16)[:, :, None, None]
    norm.reset_parameters()
    norm.eps = 0.0
    groups = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    peer = torchvision.models.MobileNetV2(100, width_mult=0.5, inverted_residual_setting=groups, round_nearest=1)
    for part in [m for m in peer.modules() if isinstance(m, nn.Sequential)]:
        for i in [i for i, layer in enumerate(part) if isinstance(layer, nn.ReLU6)]:
            part[i] = nn.ReLU()
    skipped = ("blocks.0.0.conv.0.", "blocks.0.0.conv.1.")
    tensors = [value for key, value in model.state_dict().items() if not key.startswith(skipped)]
    with torch.no_grad():
        torch.testing.assert_close(model(image).logits, transplant(tensors, peer)(image))


def shufflenetv1(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits, written down from the article's Figure 2 with the departures that the module names."""

    def conv(x: Tensor, key: str, bn: str, **options: int) -> Tensor:
        x = F.conv2d(x, weights[f"{key}.weight"], groups=x.shape[1] // weights[f"{key}.weight"].shape[1], **options)
        scale, shift, mean, var = (weights[f"{bn}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean[:, None, None]) * (scale / (var + 1e-5).sqrt())[:, None, None] + shift[:, None, None]

    def block(x: Tensor, at: str, stride: int) -> Tensor:
        y = conv(x, f"{at}.conv1", f"{at}.bn1").relu()
        if x.shape[1] != 24:
            third = y.shape[1] // 3
            y = torch.stack([y[:, g * third + i] for i in range(third) for g in range(3)], 1)
        y = conv(y, f"{at}.conv2", f"{at}.bn2", stride=stride, padding=1).relu()
        y = conv(y, f"{at}.conv3", f"{at}.bn3")
        return (torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if stride == 2 else x + y).relu()

    x = conv(x, "conv1", "bn1").relu()
    for stage, blocks in ((1, 4), (2, 8), (3, 4)):
        for i in range(blocks):
            x = block(x, f"layer{stage}.{i}", 2 if i == 0 else 1)
    return x.flatten(2).mean(2) @ weights["linear.weight"].T + weights["linear.bias"]


def test_shufflenetv1_computes_what_the_article_draws() -> None:
    model, image, out = settled("ShuffleV1", 15)
    torch.testing.assert_close(out.logits, shufflenetv1(model.state_dict(), image))


# --- initialisation


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ResNet50"])
def test_convolutions_start_at_fan_out_scale(name: str) -> None:
    """Standard deviation √(2 / (k² · out)) on the widest convolution, within sampling error."""
    convs = [m for m in network(name).modules() if isinstance(m, nn.Conv2d)]
    widest = max(convs, key=lambda m: m.weight.numel())
    expected = math.sqrt(2 / (math.prod(widest.kernel_size) * widest.out_channels))
    assert widest.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(widest.weight.mean().item()) < expected / 50
    assert all(conv.bias is None or not conv.bias.any() for conv in convs)


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV2"])
def test_small_linear_start(name: str) -> None:
    *_, linear = (m for m in network(name).modules() if isinstance(m, nn.Linear))
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not linear.bias.any()


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_shufflenets_start_as_pytorch_does(name: str) -> None:
    """Uniform within ±1/√fan-in."""
    for conv in (m for m in network(name).modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 20_000):
        bound = 1 / math.sqrt(conv.weight[0].numel())
        assert 0.999 * bound < conv.weight.abs().max().item() <= bound * (1 + 1e-6)
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_unknown_name_gets_nearest_match() -> None:
    with pytest.raises(OtkdError, match="Did you mean 'resnet20'"):
        network("resnet200")
