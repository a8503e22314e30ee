"""The teacher, owned in one place: frozen, in eval mode, without gradient, its accuracy known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from otkd.core import names
from otkd.core.errors import CheckpointError
from otkd.core.layout import Layout
from otkd.core.output import Batch, ModelOutput
from otkd.core.records import TrialResult
from otkd.core.trial import Trial
from otkd.data.batches import Batches
from otkd.data.pipeline import Splits
from otkd.models.factory import create
from otkd.train.checkpoint import load_weights
from otkd.train.device import compile_network
from otkd.train.evaluate import EVAL_BATCH, classes, predictions
from otkd.train.fold import folded


class Teacher:
    """A trained network that only answers.

    Args:
        trial: how it was trained; its weights and result are looked up by the trial's key.
        layout: where finished trials lie.
        compiled: whether it is compiled, which is faster after a slow first step.

    Raises:
        CheckpointError: it has not been trained, or its files are damaged.
    """

    def __init__(
        self,
        trial: Trial,
        layout: Layout,
        splits: Splits,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        compiled: bool = False,
    ) -> None:
        folder = layout.trial(trial.key)
        who = f"the teacher {trial.student.name} ({trial.key})"
        if not folder.done:
            raise CheckpointError(f"{who} has not been trained in {layout.root}; train it first.")
        result = TrialResult.model_validate_json(folder.result.read_text(encoding="utf-8"))
        if result.status != "finished":
            raise CheckpointError(f"{who} {result.status}: {result.reason}")
        costs = (names.WALL_S, names.PREPARE_S, names.TRIAL_J)
        self.metrics = {names.TEACHER + name: value for name, value in result.metrics.items() if name not in costs}
        card = splits.card
        self.model = create(trial.student.name, classes=card.classes, channels=card.channels, seed=trial.seed)
        self.model.load_state_dict(load_weights(folder.last))
        self.model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self._answering = _cast(folded(self.model), dtype)
        if compiled:
            compile_network(self._answering)
        self._device, self._dtype, self._classes = device, dtype, card.classes
        self._answers: dict[int, Tensor] = {}
        self._logits: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> ModelOutput:
        """The teacher's output; carries no gradient."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            output: ModelOutput = self._answering(image_BCHW)
        return output

    def outputs(self, batches: Batches) -> Iterator[tuple[Batch, ModelOutput]]:
        """Every image once, in order, not augmented, with the teacher's output."""
        for batch in batches.ordered(EVAL_BATCH, whole=True):
            yield batch, self(batch.image)

    @property
    def facts(self) -> dict[str, Any]:
        """What terms may know of it beside its outputs."""
        return facts(self.model, self._classes)

    def answers(self, batches: Batches) -> Tensor:
        """The classes that the teacher predicts for the images of this process's shard; computed once for each set."""
        if id(batches) not in self._answers:
            known_NK = self._logits.get(id(batches))
            answers_N = predictions(self, batches) if known_NK is None else classes(known_NK).to(self._device)
            self._answers[id(batches)] = answers_N
        return self._answers[id(batches)]

    def logits(self, batches: Batches) -> Tensor:
        """The logits (N, K) for the same images, on the CPU; computed once for each set."""
        if id(batches) not in self._logits:
            self._logits[id(batches)] = predictions(self, batches, lambda logits_BK: logits_BK.cpu())
        return self._logits[id(batches)]


def _cast(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """What autocast would do to the weights of a frozen network in each of its forwards, once."""
    for module in model.modules():
        if dtype is not None and isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return model


def facts(model: nn.Module, classes: int) -> dict[str, Any]:
    """What terms may know of a network beside its outputs, by the names of `otkd.losses.base.Probe`."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last = next((module for module in reversed(linear) if len(module.weight) == classes), None)
    norms: tuple[nn.BatchNorm2d, ...] = getattr(model, "norms", ())
    return {
        "classifier_t": None if last is None else last.weight.detach(),
        "bias_t": None if last is None or last.bias is None else last.bias.detach(),
        "norms_t": tuple((norm.weight.detach(), norm.bias.detach()) for norm in norms),
    }
