"""What training says while it runs and when it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

from pydantic import Field

from otkd.core.config import StrictModel
from otkd.core.trial import Trial


class Record(StrictModel):
    """A record may hold a number that is not finite: a diverged trial's losses are reported as they were."""

    model_config = {"allow_inf_nan": True, "ser_json_inf_nan": "constants"}


ENDED = ("finished", "diverged")
"""States after which a trial is not run again."""


class EpochRecord(Record):
    """One epoch of one trial."""

    key: str
    """The trial."""
    stage: str = "train"
    """`train`, or the name of a loss's stage before it (FitNets' `hint`)."""
    epoch: int
    """1-based within the stage."""
    epochs: int
    """Epochs that the stage will have."""
    metrics: dict[str, float]
    """By the names in `otkd.core.names`."""
    time: float
    """When the epoch ended, in seconds since 1970."""


class TrialResult(Record):
    """The end of a trial. It holds all that a tracker needs: a lost tracker can be fed again from this alone."""

    key: str
    status: Literal["finished", "diverged", "failed", "pruned"]
    """`pruned`: a search stopped it early; its checkpoint stays, and another sweep may go on from there."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Final figures: test accuracy, size, speed; by the names in `otkd.core.names`."""
    epochs: tuple[EpochRecord, ...] = Field((), strict=False)
    """Every epoch of the trial."""
    provenance: dict[str, str] = Field(default_factory=dict)
    """Commit, dirty flag, package versions, device, host, precision."""
    started: float
    """When training began, in seconds since 1970."""
    ended: float
    """When it ended."""
    reason: str = ""
    """Why it diverged, failed or was pruned."""


class Picture(Record):
    """A matrix that a term keeps of a fixed batch: rows are the student's, columns the teacher's."""

    about: str
    """What it shows, for a caption."""
    matrix: tuple[tuple[float, ...], ...] = Field(strict=False)
    classes: tuple[int, ...] | None = Field(None, strict=False)
    """Labels of rows and columns, ascending, where these are images."""


class Moment(Record):
    """The pictures of one epoch on the way, with fewer digits than those of the last."""

    epoch: int
    pictures: dict[str, Picture]


class Pictures(Record):
    """All pictures of one trial, by `<term>-<name>`."""

    pictures: dict[str, Picture]
    earlier: tuple[Moment, ...] = Field((), strict=False)
    """The same before the last epoch, in order."""


Stage = Literal["", "search", "final"]
"""Empty in a sweep that searches nothing."""


class Label(StrictModel):
    """How a sweep presents a trial. Never part of its identity: two sweeps may name one trial differently."""

    key: str
    role: Literal["teacher", "student"]
    method: str
    """Name of the method in the sweep; `teacher` for a teacher."""
    pair: str
    """`student ← teacher`; the network's name for a teacher."""
    student: str
    teacher: str
    """Empty for a teacher."""
    seed: int
    axes: dict[str, Any] = Field(default_factory=dict)
    """Dotted path → value of each `grid:` axis of the method, e.g. `transport.solver.epsilon` → 0.05; of a candidate of
    a search, of each setting that is searched."""
    stage: Stage = ""
    """`search`: a candidate of a search, or their teacher; `final`: the winner trained again, or its teacher."""

    @property
    def is_candidate(self) -> bool:
        """Whether a search tries it: its test figures are not to be looked at."""
        return self.stage == "search" and self.role == "student"

    @property
    def title(self) -> str:
        """The name that a person reads: `wrn_16_2 ← wrn_40_2 · ot · seed 0`."""
        axes = [f"{path.split('.')[-1]}={value}" for path, value in self.axes.items()]
        final = ["final"] if self.stage == "final" else []
        return " · ".join([self.pair, self.method, *axes, *final, f"seed {self.seed}"])


class SweepInfo(StrictModel):
    """A sweep as the record keeps it."""

    name: str
    """Name of the sweep; with a profile `name-profile`."""
    key: str
    """Digest of the question: the set of trials and how they are labelled."""
    question: str
    profile: str
    """Empty for none."""
    yaml: str
    """The sweep after profile and overrides, as YAML."""
    notes: tuple[str, ...] = Field((), strict=False)
    """What a reader of the tables has to know: budget, split, selection rule."""
    dataset: str
    finals: bool = False
    """Whether the winners of its search are trained again: then no candidate is compared, at any time."""
    labels: tuple[Label, ...] = Field(strict=False)
    """Every trial, teachers first; of a search those that are known so far."""

    def with_labels(self, labels: Iterable[Label]) -> SweepInfo:
        """The same sweep with these labels behind those that it has; each once."""
        known = {label.model_dump_json(): label for label in (*self.labels, *labels)}
        return self.model_copy(update={"labels": tuple(known.values())})


class MetricSink(Protocol):
    """Where records go. The engine never asks who listens."""

    def start(self, trial: Trial) -> None:
        """A trial begins, or goes on after an interruption."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended. After a resume an epoch can come again; sinks keep the first."""

    def finish(self, result: TrialResult) -> None:
        """A trial has ended; comes once a run, and again when a finished trial is replayed."""

    def close(self) -> None:
        """No more records will come."""


class FanOut:
    """One sink that passes everything on to several."""

    def __init__(self, *sinks: MetricSink) -> None:
        self.sinks = sinks

    def start(self, trial: Trial) -> None:
        for sink in self.sinks:
            sink.start(trial)

    def epoch(self, record: EpochRecord) -> None:
        for sink in self.sinks:
            sink.epoch(record)

    def finish(self, result: TrialResult) -> None:
        for sink in self.sinks:
            sink.finish(result)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
