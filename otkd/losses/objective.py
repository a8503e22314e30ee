"""The objective: a weighted sum of named terms, the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from otkd.core import names, plugins
from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.core.seeds import derive
from otkd.losses.base import LossOutput, Probe, Snapshot, Stage, TermLoss

MAIN = "train"


class Position(NamedTuple):
    """A place on a trial's time line."""

    stage: str
    epoch: int
    """1-based within the stage."""
    epochs: int
    """Epochs of the stage."""


START = Position(MAIN, 1, 1)


class ObjectiveOutput(NamedTuple):
    loss: Tensor
    """Scalar to go backward from: `task` and `distilled` together."""
    task: Tensor
    """What of it comes from terms that look at no teacher."""
    distilled: Tensor
    """What comes from the others."""
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
        self.configs: dict[str, TermConfig] = {}
        for name, options in terms.items():
            module = plugins.load("losses", name)
            config = module.Config.model_validate(dict(options))
            with torch.random.fork_rng([]):
                torch.manual_seed(derive(seed, f"term/{name}"))
                self.terms[name] = module.Loss(config, probe)
            self.configs[name] = config

    def needs_teacher(self, stage: str = MAIN) -> bool:
        """Whether any term that is active in `stage` looks at the teacher."""
        return any(term.needs_teacher for _, term in self._active(stage))

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

    def deployed(self, model: nn.Module) -> nn.Module:
        """The network that is evaluated, measured and kept; see `TermLoss.deployed`."""
        for term in cast(Iterable[TermLoss], self.terms.values()):
            model = term.deployed(model)
        return model

    @property
    def has_snapshots(self) -> bool:
        """Whether any term keeps something of a batch."""
        return any(
            type(term).snapshot is not TermLoss.snapshot for term in cast(Iterable[TermLoss], self.terms.values())
        )

    def snapshots(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> dict[str, Snapshot]:
        """What the terms keep of one batch, by `<term>-<name>`."""
        return {
            f"{name}-{part}": snapshot
            for name, term in self.terms.items()
            for part, snapshot in cast(TermLoss, term).snapshot(out_s, out_t, batch).items()
        }

    def forward(
        self, out_s: ModelOutput | None, out_t: ModelOutput | None, batch: Batch, position: Position = START
    ) -> ObjectiveOutput:
        """The weighted sum of the terms that are active at this place of the training."""
        task = distilled = torch.zeros((), device=batch.target.device)
        metrics: dict[str, Tensor] = {}
        for name, term in self._active(position.stage):
            run: Callable[..., LossOutput] = term if position.stage == MAIN else term.pretrain
            output = run(out_s, out_t, batch)
            weighted = self._weight(name, position) * output.value.float()
            task, distilled = (task, distilled + weighted) if term.needs_teacher else (task + weighted, distilled)
            metrics[names.term(name, "raw")] = output.value.detach()
            metrics[names.term(name, "weighted")] = weighted.detach()
            metrics |= {names.term(name, part): value.detach() for part, value in output.parts.items()}
        return ObjectiveOutput(task + distilled, task, distilled, metrics)

    def _weight(self, name: str, position: Position) -> float:
        config = self.configs[name]
        return config.weight_in(position.epoch, position.epochs) if position.stage == MAIN else 1.0

    def _active(self, stage: str) -> list[tuple[str, TermLoss]]:
        """The terms that take part in a stage."""
        terms = [(name, cast(TermLoss, term)) for name, term in self.terms.items()]
        if stage == MAIN:
            return [(name, term) for name, term in terms if term.in_training]
        return [(name, term) for name, term in terms if any(stage == own.name for own in term.stages)]
