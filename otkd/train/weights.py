"""Weights from outside: files of RepDistiller, mdistiller, torchvision and others, read, checked and taken in.

A file is a state dict, or a dict that holds one under `model`, `state_dict`, `net` or `model_state_dict`, with or
without the prefixes of `DataParallel` (`module.`) and `torch.compile` (`_orig_mod.`), or safetensors. Nothing in it is
ever executed: what holds more than tensors and plain values is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from otkd.core import plugins
from otkd.core.cards import DataCard
from otkd.core.errors import CheckpointError
from otkd.core.layout import Layout
from otkd.core.trial import Model
from otkd.core.weights import NAMED, Given
from otkd.train import checkpoint

HOLDERS = ("model", "state_dict", "net", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"
"""A batch norm's counter, which files of old versions of torch lack and nothing depends on."""
ROUGHLY = 0.1
DEEPEST = 3
"""In how many dicts a state dict may lie."""
SHOWN = 5
"""How many names of each kind a message lists."""


def take_in(layout: Layout, given: Iterable[Given], card: DataCard) -> None:
    """Check weights against the networks that they are for, and keep them where trials look for them.

    Args:
        given: what the sweep names.
        card: the data set, for classes and channels.

    Raises:
        CheckpointError: everything that is wrong with any of them.
    """
    problems, fitting = [], {}
    for item in given:
        target = place(layout, Model(name=item.network, weights=item.digest), card)
        if target.exists() and (item.begins or _whole(target, item.network, card)):
            continue
        try:
            fitting[target] = _fitting(item, card)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    for target, weights in fitting.items():
        checkpoint.save_weights(target, weights)


def _whole(path: Path, network: str, card: DataCard) -> bool:
    """Whether what was taken in for a student has a classifier, too, as a teacher needs it."""
    return not mismatch(checkpoint.load_weights(path), _empty(network, card.classes, card.channels))


def place(layout: Layout, network: Model, card: DataCard) -> Path:
    """Where the weights of a network lie once they have been taken in."""
    assert network.weights is not None
    kind, content = network.weights.split(":", 1)
    file = content[:32] if kind == "sha256" else content
    return layout.weights / f"{network.name.replace('/', '-')}-{card.channels}-{card.classes}-{file}.pt"


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, its names without prefixes.

    Raises:
        CheckpointError: it cannot be read, holds more than tensors, or no state dict.
    """
    held = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for _ in range(DEEPEST):
        inside = [held[key] for key in HOLDERS if isinstance(held, Mapping) and isinstance(held.get(key), Mapping)]
        held = inside[0] if inside and not _is_state_dict(held) else held
    if not isinstance(held, Mapping) or not _is_state_dict(held):
        keys = f"has {', '.join(map(str, list(held)[:SHOWN]))}" if isinstance(held, Mapping) else ""
        what = f"it {keys or f'is a {type(held).__name__}'}"
        raise CheckpointError(
            f"{path}: no state dict in it, neither at the top nor under {', '.join(HOLDERS)}; {what}."
        )
    return {_plain(name): tensor for name, tensor in held.items()}


def begin(network: nn.Module, layout: Layout, model: Model, card: DataCard) -> None:
    """Fill a network with the weights that `take_in` has kept for it; a classifier that they lack keeps what it has.

    Raises:
        CheckpointError: they have not been taken in.
    """
    path = place(layout, model, card)
    if not path.exists():
        raise CheckpointError(
            f"the weights {model.weights} of {model.name} are not in {layout.weights}. `otkd sweep` takes them in; "
            "without it, otkd.train.weights.take_in(layout, plan.weights, card) does."
        )
    network.load_state_dict(checkpoint.load_weights(path), strict=False)


def mismatch(weights: Mapping[str, Tensor], network: nn.Module) -> str:
    """What of the weights does not fit the network, by name; empty where all does."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in weights and not name.endswith(COUNTER)]
    unexpected = [name for name in weights if name not in wanted]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    return "; ".join(f"{len(found)} {what}: {_some(found)}" for what, found in parts if found)


def _fitting(item: Given, card: DataCard) -> dict[str, Tensor]:
    """The weights that fill the network, without what a student's new classifier stands for.

    Raises:
        CheckpointError: they do not fit.
    """
    weights = _named(item) if item.digest.startswith(NAMED) else read(Path(item.source).expanduser())
    network = _empty(item.network, card.classes, card.channels)
    for name in _classifier(network, card.classes) if item.begins else ():
        if name in weights and weights[name].shape != network.state_dict()[name].shape:
            weights[name] = torch.empty_like(network.state_dict()[name])
    wrong = mismatch(weights, network)
    if wrong:
        raise CheckpointError(f"{item.source} does not fit {item.network}: {wrong}.{_pointer(weights, card.channels)}")
    unsound = [name for name, tensor in weights.items() if not tensor.is_meta and not bool(tensor.isfinite().all())]
    if unsound:
        raise CheckpointError(f"{item.source}: {_some(unsound)} hold numbers that are not finite.")
    return {name: tensor.contiguous() for name, tensor in weights.items() if not tensor.is_meta}


def _named(item: Given) -> dict[str, Tensor]:
    found: dict[str, Tensor] = plugins.load("models", plugins.family_of(item.network)).pretrained(
        item.network, item.source
    )
    return found


def _empty(name: str, classes: int, channels: int) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        network: nn.Module = plugins.load("models", plugins.family_of(name)).build(name, classes, channels)
    return network


def _classifier(network: nn.Module, classes: int) -> list[str]:
    """Names of the last linear layer's tensors."""
    linear = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and len(module.weight) == classes
    ]
    return [f"{linear[-1]}.{part}" for part in ("weight", "bias")] if linear else []


def _pointer(weights: Mapping[str, Tensor], channels: int) -> str:
    """Whose weights these are, as far as their shapes tell."""
    shapes = _shapes(weights)
    for classes in dict.fromkeys(shape[0] for shape in reversed(list(shapes.values())) if shape):
        for name in _of_size(sum(tensor.numel() for tensor in weights.values()), classes):
            for images in dict.fromkeys((channels, 3, 1)):
                if _shapes(_empty(name, classes, images).state_dict()) == shapes:
                    of = "" if images == channels else f", for images of {images} channel{'s' * (images > 1)}"
                    return f" These are the shapes of {name} with {classes} classes{of}."
    return " No network of otkd has these shapes."


def _of_size(numbers: int, classes: int) -> Iterator[str]:
    """Networks of about so many numbers; an image's channels and the statistics of batch norms are a few percent."""
    for name, card in plugins.cards("models").items():
        if abs(numbers / (card.params + (classes - 100) * (card.embedding + 1)) - 1) < ROUGHLY:
            yield name


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if not name.endswith(COUNTER)}


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file fails in many ways
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            said = f"{type(error).__name__}: {checkpoint.first_line(error)}"
            raise CheckpointError(f"{path} cannot be read as weights ({said}). Is it whole?") from None
        raise CheckpointError(
            f"{path} holds more than tensors ({found[1]}), which only running code from it could read, and otkd runs "
            "none. docs/checkpoints.md shows how to convert a file that you trust."
        ) from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {checkpoint.first_line(error)}") from None


def _is_state_dict(held: Mapping[Any, Any]) -> bool:
    return bool(held) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items())


def _plain(name: str) -> str:
    """Without prefixes, in whatever order they come."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
