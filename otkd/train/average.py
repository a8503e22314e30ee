"""The running average of a network's weights over the steps of its training (Polyak & Juditsky, 1992).

After step n the average is `decay` · average + (1 - `decay`) · weights; after the first step it is those weights, so
that the freshly drawn ones, which a decay near 1 would keep for thousands of steps, have no part in it. The statistics
of batch norms are averaged alike; whole numbers, such as a counter of batches, are those of the last step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """A copy of a network that follows it.

    Args:
        module: the network; the average begins as it is, and stays so until the first `update`.
        decay: share of the average that a step keeps, between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay
        self.updates = 0
        """How often it has been updated."""

    @property
    def module(self) -> nn.Module:
        """The averaged network, frozen and in eval mode; always the same object, which `update` changes in place."""
        return self._module

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the network's tensors after an optimizer step, on their device and without waiting for it.

        Raises:
            ValueError: it has other tensors than the network at the beginning.
        """
        pairs = list(zip(_tensors(self._module), _tensors(module), strict=True))
        averaged = [pair for pair in pairs if self.updates and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (self.updates and pair[0].is_floating_point())]
        if averaged:
            torch._foreach_lerp_(*_columns(averaged), 1 - self._decay)
        if copied:
            torch._foreach_copy_(*_columns(copied))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold; its tensors are the average's own."""
        return {"module": self._module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of an average of the same network."""
        self._module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Every parameter and buffer once, even one that several modules share."""
    return [*module.parameters(), *module.buffers()]


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [average for average, _ in pairs], [current for _, current in pairs]
