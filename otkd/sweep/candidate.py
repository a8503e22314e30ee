"""A configuration in training: a trainer per seed, stepped in turn and judged together by the mean of val/top1.

Epochs that are on disk already (of a trial that has ended, or in a checkpoint) are reported first, one by one, without
training: who judges configurations hears the same again after an interruption. A trainer is made when the first epoch
beyond them is wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from otkd.core.errors import StorageError
from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Trial
from otkd.sweep.runner import HOPELESS, hopeless
from otkd.sweep.searchers import MAIN, Report, report_of
from otkd.train import CohortTrainer, Environment, checkpoint
from otkd.train.distributed import GroupError

log = logging.getLogger("otkd")

Status = Literal["running", "finished", "diverged", "failed", "stopped"]


class Seed:
    """One trial of a configuration."""

    def __init__(self, trial: Trial, environment: Environment, retries: int = 0) -> None:
        self.trial, self.retries, self._environment = trial, retries, environment
        self.trainer: CohortTrainer | None = None
        self.result: TrialResult | None = None
        self.before: list[EpochRecord] = []
        """Epochs of stages before the main one."""
        self.main: list[EpochRecord] = []
        """Epochs of the main stage, in order."""
        self._look()

    @property
    def status(self) -> Status:
        """`running` until its trainer has ended."""
        if self.result is not None:
            return "finished" if self.result.status == "finished" else _ended(self.result)
        return "stopped" if self.trainer is not None and self.trainer.stopped else "running"

    def step(self, make: Callable[[Trial], CohortTrainer]) -> None:
        """Train to the end of the next epoch."""
        if self.trainer is None:
            self.trainer = make(self.trial)
        if not (self.trainer.done or self.trainer.stopped):
            self.remember(self.trainer.step())
        self.result = self.trainer.results.get(self.trial.key)

    def again(self, reason: str) -> None:
        """Begin once more, from the last checkpoint."""
        log.warning("%s failed; it is tried again (%s)", self.trial.key, reason.partition("\n")[0])
        self.retries -= 1
        self.trainer = self.result = None
        self._look()

    def remember(self, records: Iterable[EpochRecord]) -> None:
        """Keep epochs that are new: after another beginning some come again."""
        for record in records:
            kept = self.main if record.stage == MAIN else self.before
            if (record.stage, record.epoch) not in {(old.stage, old.epoch) for old in kept}:
                kept.append(record)

    def _look(self) -> None:
        """Find out how far it has come before."""
        folder = self._environment.layout.trial(self.trial.key)
        self._environment.mirror.fetch(folder)
        if folder.done:
            self.result = TrialResult.model_validate_json(folder.result.read_text(encoding="utf-8"))
            self.remember(self.result.epochs)
        elif (state := checkpoint.load(folder)) is not None:
            self.remember(EpochRecord.model_validate_json(text) for text in state["history"])


class Seeds:
    """The trials of a configuration.

    Args:
        trials: which differ in their seed alone.
        environment: where they lie.
        make: gives the trainer of one trial, which tells its sink of every epoch that it trains.
        retries: how often each trial that fails is begun again.
        lost: errors that are none of a trial's own, and are raised.

    Raises:
        OtkdError: a result on disk is damaged, or the storage refuses.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        environment: Environment,
        make: Callable[[Trial], CohortTrainer],
        retries: int = 0,
        lost: tuple[type[Exception], ...] = (),
    ) -> None:
        self._make = make
        self._lost: tuple[type[Exception], ...] = (StorageError, GroupError, *lost)
        self._seeds = [Seed(trial, environment, retries) for trial in trials]
        self._reported = 0
        self.known = [record for seed in self._seeds if seed.result is None for record in (*seed.before, *seed.main)]
        """Epochs of earlier sessions, of trials that have not ended."""

    @property
    def status(self) -> Status:
        """`running` while there is something to report or to train; `finished` when every seed has."""
        if self._reported < self.reached:
            return "running"
        found = [seed.status for seed in self._seeds]
        worst: tuple[Status, ...] = ("stopped", "failed", "diverged", "running")
        return next((status for status in worst if status in found), "finished")

    def step(self) -> Report | None:
        """Go on by an epoch of one seed, or by nothing where all have come further than was reported.

        Returns:
            How the configuration stands, when all seeds have come an epoch further.
        """
        if self._reported == self.reached:
            self._train()
        if self._reported == self.reached:
            return None
        self._reported += 1
        return report_of([[*seed.before, *seed.main[: self._reported]] for seed in self._seeds])

    def save(self) -> None:
        """Write checkpoints of what is under way, so that others can go on from here."""
        for seed in self._seeds:
            if seed.trainer is not None:
                seed.trainer.save()

    @property
    def reached(self) -> int:
        """The last epoch that all seeds have come to, whether it was reported or not."""
        return min(len(seed.main) for seed in self._seeds)

    def _train(self) -> None:
        behind = min((seed for seed in self._seeds if seed.status == "running"), key=lambda seed: len(seed.main))
        try:
            behind.step(self._make)
        except self._lost:
            raise
        except Exception as error:
            if not behind.retries or type(error).__name__ in HOPELESS:
                raise
            behind.again(f"{type(error).__name__}: {error}")
        if behind.status == "failed" and behind.retries and behind.result and not hopeless(behind.result):
            behind.again(behind.result.reason)


def _ended(result: TrialResult) -> Status:
    return "diverged" if result.status == "diverged" else "failed"
