"""The objective: a weighted sum of named terms, the same for every method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from otkd.core import names, plugins
from otkd.core.output import Batch, ModelOutput
from otkd.core.seeds import derive
from otkd.losses.base import Probe, Snapshot, Stage, TermLoss

MAIN = "train"


class ObjectiveOutput(NamedTuple):
    loss: Tensor
    """Scalar to go backward from."""
    metrics: dict[str, Tensor]
    """Every active term raw and weighted and its parts, detached scalars by metric name."""


class Objective(nn.Module):
    """Builds the terms and adds them up.

    Args:
        terms: term → full configuration, as in `Trial.objective`.
        probe: outputs of both networks for two images.
        seed: of the terms' own weights; each term has a stream of its own, so terms do not disturb each other.
    """

    def __init__(self, terms: Mapping[str, Mapping[str, Any]], probe: Probe, seed: int = 0) -> None:
        super().__init__()
        self.terms = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        for name, options in terms.items():
            module = plugins.load("losses", name)
            config = module.Config.model_validate(dict(options))
            with torch.random.fork_rng([]):
                torch.manual_seed(derive(seed, f"term/{name}"))
                self.terms[name] = module.Loss(config, probe)
            self.weights[name] = config.weight

    def needs_teacher(self, stage: str = MAIN) -> bool:
        """Whether any term that is active in `stage` looks at the teacher."""
        terms = [cast(TermLoss, term) for term in self.terms.values()]
        return any(term.needs_teacher and _active(term, stage) for term in terms)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The terms' stages before the main one, in the order of the terms."""
        return tuple(stage for term in self.terms.values() for stage in cast(TermLoss, term).stages)

    @property
    def needs_preparation(self) -> bool:
        """Whether any term wants to see the teacher's outputs for the training images first."""
        return bool(self._preparing)

    def observe(self, batch: Batch, out_t: ModelOutput) -> None:
        """Show the teacher's output for one batch to the terms that ask for it; see `TermLoss.observe`."""
        for term in self._preparing:
            term.observe(batch, out_t)

    def prepare(self) -> None:
        """All training images have been shown."""
        for term in self._preparing:
            term.prepare()

    @property
    def _preparing(self) -> list[TermLoss]:
        return [term for term in cast(Iterable[TermLoss], self.terms.values()) if term.needs_preparation]

    def snapshots(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> dict[str, Snapshot]:
        """What the terms keep of one batch, by `<term>-<name>`."""
        return {
            f"{name}-{part}": snapshot
            for name, term in self.terms.items()
            for part, snapshot in cast(TermLoss, term).snapshot(out_s, out_t, batch).items()
        }

    def forward(
        self, out_s: ModelOutput, out_t: ModelOutput | None, batch: Batch, stage: str = MAIN
    ) -> ObjectiveOutput:
        """The weighted sum of the terms that are active in `stage`."""
        total = torch.zeros((), device=batch.target.device)
        metrics: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if not _active(cast(TermLoss, term), stage):
                continue
            output = term(out_s, out_t, batch)
            weighted = self.weights[name] * output.value.float()
            total = total + weighted
            metrics[names.term(name, "raw")] = output.value.detach()
            metrics[names.term(name, "weighted")] = weighted.detach()
            metrics |= {names.term(name, part): value.detach() for part, value in output.parts.items()}
        return ObjectiveOutput(total, metrics)


def _active(term: TermLoss, stage: str) -> bool:
    if stage == MAIN:
        return term.in_training
    return any(stage == own.name for own in term.stages)
