"""One trial in training: network, objective, optimizer, position, and everything that a checkpoint has to hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from otkd.core import names
from otkd.core.cards import DataCard
from otkd.core.layout import Layout
from otkd.core.output import Batch, ModelOutput
from otkd.core.records import EpochRecord, Moment
from otkd.core.seeds import derive
from otkd.core.trial import Trial
from otkd.losses.base import Probe, Snapshot
from otkd.losses.objective import MAIN, Objective, ObjectiveOutput, Position
from otkd.models.factory import create
from otkd.train import checkpoint, weights
from otkd.train.average import Average
from otkd.train.batchnorm import synchronised
from otkd.train.device import RandomStream, Stopwatch, compile_network
from otkd.train.distributed import Group
from otkd.train.evaluate import best_five, hits
from otkd.train.optim import backward, lr_factor, optimizer
from otkd.train.running import Running

CHECK_EVERY = 50
"""Steps between looks at whether the loss is still finite, on devices where a look makes the host wait."""


class Best(NamedTuple):
    """The weights that did best on validation so far."""

    epoch: int
    top1: float
    weights: dict[str, Tensor]


class Student:
    """A network in training.

    Time is counted in ticks, one an epoch: 1, 2, … are the epochs of the main stage, in which all members of a cohort
    agree; the epochs of stages before it lie at 0, -1, …

    Args:
        trial: what to train.
        image_2CHW: two images.
        probe: what the terms get to know, given the student's output for the two images.
        card: the data set.
        group: the processes that share every batch; None for this one alone.
        parts: how many parts a batch is cut into at the least; the recipe may ask for more.
        compiled: whether the network is compiled, which is faster after a slow first step.
    """

    def __init__(
        self,
        trial: Trial,
        layout: Layout,
        *,
        image_2CHW: Tensor,
        probe: Callable[[ModelOutput], Probe],
        card: DataCard,
        dtype: torch.dtype | None,
        group: Group | None = None,
        parts: int = 1,
        compiled: bool = False,
    ) -> None:
        self.trial = trial
        self.group = group = group or Group()
        self.folder = layout.trial(trial.key)
        self.device, self.dtype = image_2CHW.device, dtype
        network = create(trial.student.name, classes=card.classes, channels=card.channels, seed=trial.seed)
        if trial.student.weights is not None:
            weights.begin(network, layout, trial.student, card)
        self.model: nn.Module = network.to(self.device).to(memory_format=torch.channels_last)
        if group.world > 1 and trial.train.sync_batchnorm:
            synchronised(self.model)
        if compiled:
            compile_network(self.model)
        self.objective = Objective(trial.objective, probe(_probe(self.model, image_2CHW)), trial.seed).to(self.device)
        self.stages = self.objective.stages
        purposes = (f"dropout/{group.rank}", "terms")  # processes differ in what they forward, not in the objective
        self.random, self.draws = (RandomStream(derive(trial.seed, purpose), self.device) for purpose in purposes)
        self.tick = 1 - sum(stage.epochs for stage in self.stages)
        self._parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.optimizer = self._new_optimizer()
        self.parts = max(parts, trial.train.accumulate)
        """Parts of a batch whose gradients are added up."""
        self.average = Average(self._bare, trial.train.ema) if trial.train.ema is not None else None
        self.running = Running(self.device)
        self.history: list[EpochRecord] = []
        self.best: Best | None = None
        self.moments: list[Moment] = []
        """What the terms have shown on the way; of the first process alone."""
        self.started = time.time()
        self.clock = Stopwatch(self.device)
        self.check_every = 1 if self.device.type == "cpu" else CHECK_EVERY
        self.problem = ""
        """Why the trial diverged; empty while all is well."""
        self.prepare_s = 0.0
        """Seconds of the objective's preparation, had the trial trained alone."""
        self.resumed = self._resume()
        """Whether it goes on from a checkpoint."""

    @property
    def done(self) -> bool:
        """All epochs are trained."""
        return self.tick > self.trial.train.epochs

    @property
    def position(self) -> Position:
        """Stage and epoch of the current tick."""
        before = self.tick + sum(stage.epochs for stage in self.stages)
        for stage in self.stages:
            if before <= stage.epochs:
                return Position(stage.name, before, stage.epochs)
            before -= stage.epochs
        return Position(MAIN, self.tick, self.trial.train.epochs)

    @property
    def deployed(self) -> nn.Module:
        """The network that is evaluated, measured and kept: the student or its average, and what a term puts on it."""
        return self._bare if self.average is None else self.average.module

    @property
    def place(self) -> tuple[int, int]:
        """The tick, and the batches of its epoch that are done."""
        return self.tick, self.running.steps

    @property
    def needs_teacher(self) -> bool:
        """Whether the current stage looks at the teacher."""
        return self.objective.needs_teacher(self.position.stage)

    @property
    def to_prepare(self) -> bool:
        """Whether the objective has to see the teacher's outputs first, and what it learns is not in a checkpoint."""
        return self.objective.needs_preparation and not self.resumed

    def observe(self, batch: Batch, out_t: ModelOutput) -> None:
        """Show the objective the teacher's output for one batch of training images."""
        with self.clock.running():
            self.objective.observe(batch, out_t)

    def prepare(self, shared_s: float) -> None:
        """All training images have been shown.

        Args:
            shared_s: seconds that the teacher's pass took.
        """
        with self.clock.running():
            self.objective.prepare()
        self.prepare_s = shared_s + self.clock.read()

    def begin_epoch(self) -> None:
        """Get ready for the current tick."""
        if self.position.epoch == 1 and not self.running.steps:
            self.optimizer = self._new_optimizer()
            if self.average is not None and self.position.stage == MAIN:
                self.average.updates = 0  # what a stage before has left, or the fresh weights, have no part in it
        self.model.train()
        self.objective.train()
        self._looked = self.running.steps

    def train_step(self, batch: Batch, out_t: ModelOutput | None, steps: int) -> None:
        """Forward, backward, update. Sets `problem` once the loss is no longer finite.

        Args:
            steps: batches in this epoch.
        """
        position = self.position
        self._set_lr(position.stage, self.running.steps / steps)
        with self.clock.running():
            for parameter in self._parameters:
                parameter.grad = None
            for part, part_t in cut(batch, out_t, self.parts):
                out_s = self._learn(part, part_t, position, len(part.target) / len(batch.target))
            self.group.sum_gradients(self.model.parameters())
            if self.trial.train.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._parameters, self.trial.train.clip_norm)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self._bare)
        self.running.steps += 1
        if self.running.steps - self._looked >= self.check_every or self.running.steps == steps:
            self._look_for_divergence(out_s, part_t)

    def _learn(self, batch: Batch, out_t: ModelOutput | None, position: Position, share: float) -> ModelOutput | None:
        """Add the gradients of a batch, or of the part of one that is that share of it."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            out_s = self._forward(batch) if self._takes_part(position.stage) else None
            with self.draws:
                output = self.objective(out_s, out_t, batch, position)
        backward(self.optimizer, output, share)
        self._count(output, out_s, out_t, batch.target)
        return out_s

    def _forward(self, batch: Batch) -> ModelOutput:
        """The network's output for the whole batch."""
        with self.random:
            own: ModelOutput = self.model(batch.image)
        return self.group.gather(own, self.group.sizes(len(batch.target)))

    def settle(self) -> None:
        """At the end of an epoch: see that all processes have the same, batch norms' statistics and all."""
        if self.group.world == 1:
            return
        if not self.trial.train.sync_batchnorm:
            self.group.average_buffers(self.model)
        self.group.broadcast(self.objective)
        if self.average is not None and not self.trial.train.sync_batchnorm:
            self.group.average_buffers(self.average.module)
        for network in dict.fromkeys((self.model, self.deployed)):
            self.group.check_same(network, f"the weights of {self.trial.key}")

    def end_epoch(self, metrics: dict[str, float], val: dict[str, float]) -> EpochRecord:
        """Close the current tick and move on to the next.

        Args:
            metrics: what the cohort measured (times, memory).
            val: figures on the validation images, empty without any.
        """
        position = self.position
        sums = self.running.means()
        figures = {f"val/{name}": value for name, value in val.items()}
        record = EpochRecord(
            key=self.trial.key,
            stage=position.stage,
            epoch=position.epoch,
            epochs=position.epochs,
            metrics={names.LR: self.optimizer.param_groups[0]["lr"], **sums, **figures, **metrics},
            time=time.time(),
        )
        self.history.append(record)
        if position.stage == MAIN and val and (self.best is None or val["top1"] > self.best.top1):
            self.best = Best(position.epoch, val["top1"], self.weights())
        self.tick += 1
        self.running = Running(self.device)
        return record

    @torch.no_grad()
    def snapshots(self, batch: Batch, out_t: ModelOutput) -> dict[str, Snapshot]:
        """What the terms keep of one batch; see `Objective.snapshots`. Leaves the networks in eval mode."""
        self.model.eval()
        self.objective.eval()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            network = self.deployed if self._bare is self.model else self.model
            return self.objective.snapshots(network(batch.image), out_t, batch)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's state dict on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.deployed.state_dict().items()}

    def save(self, shared: tuple[float, ...]) -> None:
        """Write a checkpoint from which training goes on exactly as if it had not stopped.

        Args:
            shared: seconds of teacher and data in the epoch under way, joules, and the seconds of these.
        """
        state = {
            "tick": self.tick,
            "running": self.running.state((self.clock.total(), *shared)),
            "parts": self.parts,
            "average": self.average.state_dict() if self.average else None,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.state,
            "draws": self.draws.state,
            "history": [record.model_dump_json() for record in self.history],
            "best": tuple(self.best) if self.best else None,
            "moments": [moment.model_dump_json() for moment in self.moments],
            "started": self.started,
            "prepare_s": self.prepare_s,
        }
        checkpoint.save(self.folder, state)

    def _resume(self) -> bool:
        state = checkpoint.load(self.folder)
        if state is None:
            return False
        self.tick, self.parts = state["tick"], state["parts"]
        self.running.restore(state["running"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.state = state["draws"]
        if self.group.rank == 0:
            self.random.state = state["random"]
        else:  # the checkpoint is the first process's
            purpose = f"dropout/{self.group.rank}/{self.tick}"
            self.random = RandomStream(derive(self.trial.seed, purpose, self.running.steps), self.device)
        self.history = [EpochRecord.model_validate_json(text) for text in state["history"]]
        self.best = Best(*state["best"]) if state["best"] else None
        self.moments = [Moment.model_validate_json(text) for text in state.get("moments", ())]
        self.started, self.prepare_s = state["started"], state["prepare_s"]
        return True

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return optimizer(self.trial.train.optimizer, self._parameters)

    @property
    def _bare(self) -> nn.Module:
        """The student as it is, and what a term puts on it."""
        return self.objective.deployed(self.model)

    def _takes_part(self, stage: str) -> bool:
        return all(own.student for own in self.stages if own.name == stage)

    def _set_lr(self, stage: str, share: float) -> None:
        if stage == MAIN:
            lr = self.trial.train.optimizer.lr * lr_factor(self.trial.train, self.tick - 1 + share)
        else:
            lr = next(own.lr for own in self.stages if own.name == stage)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _count(
        self, output: ObjectiveOutput, out_s: ModelOutput | None, out_t: ModelOutput | None, target_B: Tensor
    ) -> None:
        """Add this batch to the epoch's sums, on the device."""
        self.running.unsound |= ~torch.isfinite(output.loss.detach())
        own = out_s is not None and self._bare is self.model  # else its own classifier is not the one that counts
        counts = self._hits(out_s.logits.detach(), out_t, target_B) if own and out_s is not None else {}
        self.running.add(len(target_B), {names.TRAIN_LOSS: output.loss.detach(), **output.metrics}, counts)

    def _hits(self, logits_BK: Tensor, out_t: ModelOutput | None, target_B: Tensor) -> dict[str, Tensor]:
        """How many images the student in training gets right, and how many as the teacher has them, times 100."""
        best_B5 = best_five(logits_BK)
        top1, top5 = hits(best_B5, target_B)
        counts = {names.TRAIN_TOP1: 100 * top1, names.TRAIN_TOP5: 100 * top5}
        if out_t is not None and self.needs_teacher:
            counts[names.TRAIN_AGREEMENT] = 100 * (best_B5[:, 0] == out_t.logits.argmax(1)).sum()
        return counts

    def _look_for_divergence(self, out_s: ModelOutput | None, out_t: ModelOutput | None) -> None:
        if bool(self.running.unsound):
            position, step = self.position, self.running.steps
            what = "not a number" if math.isnan(self.running.means()[names.TRAIN_LOSS]) else "infinite"
            self.problem = f"the loss became {what} in {position.stage} epoch {position.epoch}, by step {step}"
            unseen = step - self._looked
            self.problem += f", within the last {unseen} steps" if unseen > 1 else ""
            self.problem += _unsound_layers(out_s, out_t)
        self._looked = self.running.steps


def cut(batch: Batch, out_t: ModelOutput | None, parts: int) -> Iterator[tuple[Batch, ModelOutput | None]]:
    """A batch, and the teacher's output for it, in so many parts of two images and more; they differ by one at most."""
    size = len(batch.target)
    parts = min(parts, max(size // 2, 1))
    if parts == 1:
        yield batch, out_t
        return
    for part in range(parts):
        rows = slice(part * size // parts, (part + 1) * size // parts)
        yield batch.rows(rows), out_t and out_t.rows(rows)


@torch.no_grad()
def _probe(model: nn.Module, image_2CHW: Tensor) -> ModelOutput:
    """The network's output in eval mode, so that batch norm learns nothing from it."""
    model.eval()
    output: ModelOutput = model(image_2CHW)
    return output


def _unsound_layers(out_s: ModelOutput | None, out_t: ModelOutput | None) -> str:
    """Which outputs of either network are not finite, for the reason of a divergence."""
    lines = []
    for who, out in (("student", out_s), ("teacher", out_t)):
        layers = [] if out is None else [(name, out.layer(name)) for name in (*out.taps, "embedding", "logits")]
        unsound = [name for name, tensor in layers if not bool(tensor.isfinite().all())]
        if unsound:
            lines.append(f"the {who}'s {', '.join(unsound)} are not finite")
    return f"; {'; '.join(lines)}" if lines else "; all outputs of both networks are finite"
