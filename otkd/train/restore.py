"""A trained network from its trial and its weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from otkd.core import plugins
from otkd.core.trial import Trial
from otkd.models.factory import create


def restore(trial: Trial, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network as it is deployed, with what terms of its objective have put on it, in eval mode.

    Args:
        trial: how it was trained.
        weights: the state dict that the trial kept.
    """
    card = trial.data.card
    network = create(trial.student.name, classes=card.classes, channels=card.channels, seed=trial.seed)
    for term in trial.objective:
        rebuild = getattr(plugins.load("losses", term), "rebuild", None)
        network = network if rebuild is None else rebuild(network, weights)
    network.load_state_dict(weights)
    return network.eval()
