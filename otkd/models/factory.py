"""Networks by name."""

from __future__ import annotations

import torch
from torch import nn

from otkd.core import plugins
from otkd.core.seeds import derive


def create(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
    """The network `name` on the CPU, its weights drawn from `seed` alone; global random state stays as it was.

    Args:
        name: a model of any family (`otkd list models`).
        classes: K, outputs of the classifier.
        channels: input channels.
        seed: the trial's seed.

    Raises:
        OtkdError: there is no such network; names the nearest.
    """
    family = plugins.load("models", plugins.family_of(name))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(derive(seed, "init"))  # torch.manual_seed would reseed the GPUs too
        network: nn.Module = family.build(name, classes, channels)
    return network
