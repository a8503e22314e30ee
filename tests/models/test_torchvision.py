"""torchvision's networks: cards against networks and published figures, taps against hooks on torchvision's own."""

import copy
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models import _api

from otkd.core.errors import CheckpointError, OtkdError
from otkd.core.output import ModelOutput
from otkd.models import torchvision
from otkd.models.factory import create
from otkd.models.torchvision import CARDS

NAMES = models.list_models(module=models)
CLASSES = 7
TAPS = {
    "alexnet": (63, "features.1 features.4 features.11"),
    "convnext_tiny": (32, "features.0 features.1 features.3 features.5 features.7"),
    "densenet121": (32, "features.relu0 features.denseblock1 features.denseblock2 features.denseblock3 features.norm5"),
    "efficientnet_b0": (32, "features.0 features.2 features.3 features.5 features.7"),
    "efficientnet_v2_s": (33, "features.0 features.2 features.3 features.5 features.6"),
    "googlenet": (32, "conv1 conv3 inception3b inception4e inception5b"),
    "inception_v3": (75, "Conv2d_2b_3x3 Conv2d_4a_3x3 Mixed_5d Mixed_6e Mixed_7c"),
    "maxvit_t": (224, "stem blocks.0 blocks.1 blocks.2 blocks.3"),
    "mnasnet0_5": (32, "layers.2 layers.8 layers.9 layers.11 layers.13"),
    "mobilenet_v2": (32, "features.0 features.3 features.6 features.13 features.17"),
    "mobilenet_v3_large": (32, "features.0 features.3 features.6 features.12 features.15"),
    "mobilenet_v3_small": (32, "features.0 features.1 features.3 features.8 features.11"),
    "regnet_y_400mf": (32, "stem trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output.block4"),
    "resnet18": (32, "relu layer1 layer2 layer3 layer4"),
    "shufflenet_v2_x0_5": (32, "conv1 stage2 stage3 stage4"),
    "squeezenet1_0": (32, "features.1 features.5 features.10 features.12"),
    "squeezenet1_1": (32, "features.1 features.4 features.7 features.12"),
    "swin_t": (32, "features.0 features.1 features.3 features.5 norm"),
    "swin_v2_t": (32, "features.0 features.1 features.3 features.5 norm"),
    "vgg11": (32, "features.1 features.4 features.9 features.14 features.19"),
    "vgg11_bn": (32, "features.2 features.6 features.13 features.20 features.27"),
    "vit_b_32": (
        224,
        "encoder.dropout " + " ".join(f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8)) + " encoder.ln",
    ),
}
"""One network of each architecture, the smallest image that it takes, and the modules after which its taps lie."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("torchvision_cards", str(Path(__file__).parents[2] / "scripts" / "torchvision_cards"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network() -> Any:
    """The network last asked for is kept: the largest has 130 million parameters."""
    kept: dict[str, nn.Module] = {}

    def get(name: str) -> nn.Module:
        if name not in kept:
            kept.clear()
            kept[name] = create(f"torchvision/{name}", classes=CLASSES, channels=3, seed=0)
        return kept[name]

    return get


def test_every_network_has_a_card() -> None:
    assert list(CARDS) == [f"torchvision/{name}" for name in NAMES]


@pytest.mark.parametrize(
    "name", ["inception_v3", "alexnet", "efficientnet_v2_s", "vgg16", "convnext_tiny", "densenet121"]
)
def test_the_smallest_side_is_torchvisions(name: str) -> None:
    least = models.get_model_weights(name).DEFAULT.meta["min_size"]
    assert CARDS[f"torchvision/{name}"].sides == (least[0], None)
    assert CARDS["torchvision/vit_b_16"].sides == (224, 224)
    assert CARDS["torchvision/resnet18"].sides == (1, None)


@pytest.mark.parametrize("name", NAMES)
def test_card_describes_network(script: ModuleType, name: str) -> None:
    """Measured anew, and beside the figures that torchvision publishes for 1000 classes and auxiliary classifiers."""
    card = CARDS[f"torchvision/{name}"]
    assert replace(script.card_of(name), weights=card.weights, sides=card.sides) == card
    last = card.embedding + (name != "maxvit_t")
    entry = min(models.get_model_weights(name), key=lambda entry: entry.transforms.keywords["crop_size"])
    if name not in ("googlenet", "inception_v3"):
        assert card.params + 900 * last == entry.meta["num_params"]
    places = 13**2 if name.startswith("squeezenet") else 1
    assert (card.madds + 900 * card.embedding * places) / 1e9 == pytest.approx(entry.meta["_ops"], abs=6e-4)


def test_script_writes_the_table(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "card_of", lambda name: CARDS[f"torchvision/{name}"])
    assert "\n" + script.table() == torchvision.TABLE


class Record:
    """Copies of what the named modules return, in the layout of taps."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.maps: dict[str, Tensor] = {}
        self.paths = TAPS[name][1].split()
        self.hooks = [network.get_submodule(path).register_forward_hook(self.keep(path)) for path in self.paths]

    def keep(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.maps.setdefault(path, self.as_map(output.detach().clone(), path))

        return hook

    def as_map(self, output: Tensor, path: str) -> Tensor:
        if path == "features.norm5":
            return output.clamp(min=0)
        if path.startswith("encoder"):
            return output[:, 1:].mT.reshape(len(output), -1, 7, 7)
        return output.movedim(-1, 1) if path == "norm" or self.paths[-1] == "norm" else output

    def check(self, out: ModelOutput) -> None:
        for hook in self.hooks:
            hook.remove()
        for path, feature in zip(self.paths, out.features, strict=True):
            torch.testing.assert_close(feature, self.maps[path], rtol=1e-4, atol=1e-5)


def images(name: str) -> Tensor:
    return torch.randn(2, 3, TAPS[name][0], TAPS[name][0], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TAPS)
def test_runs_as_torchvisions_own(network: Any, name: str) -> None:
    ours = network(name).eval()
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        theirs = models.get_model(name, num_classes=CLASSES, **options).eval()
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state, assign=True)
    record = Record(theirs, name)
    with torch.no_grad():
        expected, out = theirs(images(name)), ours(images(name))
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
    record.check(out)
    check_embedding(ours, out, name)


def check_embedding(network: nn.Module, out: ModelOutput, name: str) -> None:
    """The classifier maps it to the logits, and it is the last map's mean where the card says so."""
    card = CARDS[f"torchvision/{name}"]
    assert out.embedding.shape == (2, card.embedding)
    assert tuple(tap.shape[1] for tap in out.features) == card.channels
    mean = out.features[-1].mean((2, 3))
    equal = mean.shape == out.embedding.shape and torch.allclose(mean, out.embedding, atol=1e-5)
    assert equal == (card.pools_last or name.startswith("squeezenet"))
    if not name.startswith("squeezenet"):
        last = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES][-1]
        torch.testing.assert_close(F.linear(out.embedding, last.weight, last.bias), out.logits)


@pytest.mark.parametrize("name", [name for name in TAPS if name != "vgg11"])  # slow, and vgg11_bn is like it
def test_taps_survive_a_training_step(network: Any, name: str) -> None:
    """Every parameter takes a gradient, and no tap was overwritten in place after it was handed out."""
    model = network(name).train()
    record = Record(model, name)
    out = model(images(name))
    record.check(out)
    sum(tap.square().mean() for tap in (out.logits, out.embedding, *out.features)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_vit_tokens_lie_in_their_places() -> None:
    """The stem's map is the patches' projection, in the image's order, with the positions added."""
    model = create("torchvision/vit_b_32", classes=CLASSES, channels=3, seed=0).eval()
    image = images("vit_b_32")
    with torch.no_grad():
        stem = model(image).features[0]
        row, column = 2, 5
        patch = model.conv_proj(image[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32])[:, :, 0, 0]
        position = model.encoder.pos_embedding[0, 1 + 7 * row + column]
    torch.testing.assert_close(stem[:, :, row, column], patch + position, rtol=1e-4, atol=1e-5)


def test_vit_says_which_images_it_takes() -> None:
    model = create("torchvision/vit_b_32", classes=CLASSES, channels=3, seed=0)
    with pytest.raises(OtkdError, match=r"takes images of 224 × 224 pixels; got \(64, 64\)"):
        model(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["mobilenet_v2", "mnasnet0_5", "efficientnet_b0"])
def test_embedding_is_before_dropout(name: str) -> None:
    model = create(f"torchvision/{name}", classes=CLASSES, channels=3, seed=0).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.no_grad():
        outs = [model(images(name)) for _ in range(2)]
    assert torch.equal(outs[0].embedding, outs[1].embedding)
    assert not torch.equal(outs[0].logits, outs[1].logits)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "swin_t"])
@pytest.mark.parametrize("channels", [1, 5])
def test_other_input_channels(name: str, channels: int) -> None:
    model = create(f"torchvision/{name}", classes=CLASSES, channels=channels, seed=0)
    usual = create(f"torchvision/{name}", classes=CLASSES, channels=3, seed=0)
    entry, old = (next(m for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (model, usual))
    assert list(model.state_dict()) == list(usual.state_dict())
    assert entry.weight.shape == (old.out_channels, channels, *old.kernel_size)
    assert entry.weight.std().item() == pytest.approx(old.weight.std().item(), rel=0.1)
    image = torch.randn(2, channels, 32, 32)
    assert model(image).features[0].shape == usual(torch.randn(2, 3, 32, 32)).features[0].shape


def test_copy_stands_alone() -> None:
    model = create("torchvision/squeezenet1_1", classes=CLASSES, channels=3, seed=0).eval()
    twin, image = copy.deepcopy(model), images("squeezenet1_1")
    before = model(image).logits
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(image).logits, before)
    assert not twin(image).logits.any()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder; what lies in it is not fetched."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def keep(hub: Path, name: str, state: dict[str, Tensor]) -> None:
    torch.save(state, hub / models.get_model_weights(name)["IMAGENET1K_V1"].url.rpartition("/")[2])


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "densenet121"])
def test_pretrained_weights_fit(hub: Path, name: str) -> None:
    """Files as torchvision publishes them: GoogLeNet's with auxiliary classifiers, DenseNet's with older names."""
    options = {"init_weights": False} if name == "googlenet" else {}
    state = models.get_model(name, weights=None, **options).state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2.") for key in state}
    published = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2.") if name == "densenet121" else key: tensor
        for key, tensor in state.items()
    }
    assert (set(published) == old) or name != "densenet121"
    keep(hub, name, published)
    network = create(f"torchvision/{name}", classes=1000, channels=3, seed=0)
    network.load_state_dict(torchvision.pretrained(f"torchvision/{name}", "IMAGENET1K_V1"))
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key])


def test_pretrained_weights_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(url: str, **options: Any) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return {}

    monkeypatch.setattr(_api, "load_state_dict_from_url", fetch)
    torchvision.pretrained("torchvision/resnet50", "IMAGENET1K_V2")
    assert asked["url"] == models.ResNet50_Weights.IMAGENET1K_V2.url
    assert asked["check_hash"]
    assert asked["weights_only"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ("IMAGENET1K_V1", "IMAGENET1K_V2")),
        ("vgg16", ("IMAGENET1K_V1",)),  # the others have no classifier
        ("vit_h_14", ("IMAGENET1K_SWAG_LINEAR_V1",)),  # the others are for 518 pixels
    ],
)
def test_card_lists_weights(name: str, expected: tuple[str, ...]) -> None:
    assert CARDS[f"torchvision/{name}"].weights == expected
    with pytest.raises(CheckpointError, match=f"has no weights 'V1' for torchvision/{name}; there is {expected[0]}"):
        torchvision.pretrained(f"torchvision/{name}", "V1")


@pytest.mark.parametrize("name", ["regnet_x_400mf", "swin_t"])
def test_builds_without_memory(name: str) -> None:
    with torch.device("meta"):
        network = torchvision.build(f"torchvision/{name}", CLASSES, 1)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.eval()(torch.zeros(1, 1, 32, 32, device="meta")).logits.shape == (1, CLASSES)


def test_pretrained_says_where_the_file_goes(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    with pytest.raises(CheckpointError, match=rf"no route.*resnet18-f37072fd\.pth into {hub}"):
        torchvision.pretrained("torchvision/resnet18", "IMAGENET1K_V1")
