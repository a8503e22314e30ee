"""The engine: trains a cohort, that is trials which differ in nothing but their objective, together.

One teacher forward and one batch stream serve all members. What a member computes does not depend on who else is there:
its numbers are the same alone and in company, interrupted and not (bit for bit on a CPU with the same thread count).
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from otkd.core import names
from otkd.core.errors import StorageError, TrialError
from otkd.core.layout import Layout, write_text
from otkd.core.output import Batch, ModelOutput
from otkd.core.records import EpochRecord, FanOut, MetricSink, Moment, Picture, Pictures, TrialResult
from otkd.core.storage import Mirror
from otkd.core.trial import Data, Dot, Trial
from otkd.data.batches import Batches
from otkd.data.pipeline import prepare
from otkd.losses.base import Probe, Snapshot
from otkd.losses.objective import MAIN
from otkd.train import checkpoint
from otkd.train.confidence import Confidence
from otkd.train.confusion import Counts
from otkd.train.device import Stopwatch, autocast_dtype, keep_freed_memory, peak_mib, pick
from otkd.train.distributed import Group, GroupError
from otkd.train.energy import Meter, counters
from otkd.train.evaluate import EVAL_BATCH, Look, evaluate
from otkd.train.measure import compression
from otkd.train.provenance import provenance
from otkd.train.pulse import DeadlineError, Pulse, PulsedBatches, Stopped
from otkd.train.student import Student
from otkd.train.system import SystemMonitor
from otkd.train.teacher import Teacher
from otkd.train.weights import place

log = logging.getLogger("otkd")

SAVING = 0.05
"""The most of the time that may go into checkpoints, while epochs are long."""
NOTHING = (0.0,) * 4
"""What members share in an epoch that is not under way; see `CohortTrainer._shared`."""
SNAPSHOT_CLASSES = 8
"""How many classes the images for snapshots are of, so that several are of one class."""
SNAPSHOT_IMAGES = 128
"""The most images for a snapshot, however large the batch: a picture shows no more."""


@dataclass(frozen=True)
class Environment:
    """Where and how to train; nothing here changes a result but by rounding (device, threads)."""

    layout: Layout = field(default_factory=Layout)
    """Where checkpoints and results lie."""
    data_dir: Path | None = None
    """A local copy of the data set."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`."""
    threads: int | None = None
    """CPU threads; None leaves torch's own choice."""
    group: Group = field(default_factory=Group)
    """The processes that share every batch; by default this one alone. What they train lies where all can read it."""
    workers: int = 2
    """Processes that decode images, where these are streamed."""
    checkpoint_s: float = 15.0
    """Seconds of training between checkpoints."""
    compiled: bool = False
    """Whether networks are compiled (`torch.compile`)."""
    mirror: Mirror = field(default_factory=Mirror)
    """Where trials' folders are kept besides; by default nowhere."""
    heed_stop: bool = False
    """Whether to save and stop when the file `layout.stop` is there."""
    deadline_s: float | None = None
    """The most seconds of training that a trial may take, as its record counts them (`time/wall_s`); None for any."""


def fit(trials: Sequence[Trial], sink: MetricSink, environment: Environment | None = None) -> list[TrialResult]:
    """Train a cohort to its end, from checkpoints where there are any.

    Args:
        trials: one or more that differ in nothing but their objective; their teacher has been trained before.
        sink: hears of every start, epoch and end.
        environment: where and how.

    Returns:
        Results in the order of `trials`; those that were stopped on the way have none.

    Raises:
        OtkdError: the trials are no cohort, the teacher is missing, the data cannot be read, the disk is full.
    """
    trainer = CohortTrainer(trials, sink, environment or Environment())
    while not (trainer.done or trainer.stopped):
        trainer.step()
    return [trainer.results[trial.key] for trial in trials if trial.key in trainer.results]


def fetch(data: Data, environment: Environment) -> None:
    """Decode a data set into the cache, so that workers find it there and a user hears early when it is missing.

    Raises:
        DataError: it cannot be had.
    """
    prepare(data, data_dir=environment.data_dir, cache_dir=environment.layout.cache)


class CohortTrainer:
    """A cohort, one epoch at a time. Arguments and errors as for `fit`."""

    def __init__(self, trials: Sequence[Trial], sink: MetricSink, environment: Environment) -> None:
        if len({trial.cohort for trial in trials}) != 1:
            raise TrialError("a cohort is one or more trials that differ in nothing but their objective.")
        if environment.threads:
            torch.set_num_threads(environment.threads)
        self.environment, self.layout, self.group = environment, environment.layout, environment.group
        self.leads = self.group.rank == 0
        """Whether this process writes and tells; the others only compute."""
        self.sink = sink if self.leads else FanOut()
        self.device = pick(environment.device) if self.group.world == 1 else self.group.device
        self._expect_shareable(trials)
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.dtype = autocast_dtype(trials[0].train.precision, self.device)
        self.results: dict[str, TrialResult] = {}
        self.stopped = False
        """Whether it was asked to stop, and has saved; nothing more is to be done with it."""
        self.students: list[Student] = []
        self._under_way: list[Student] = []
        self._smaller: list[tuple[Trial, int]] = []
        """Trials that need smaller parts of a batch, and how many."""
        self._teacher_clock, self._data_clock = Stopwatch(self.device), Stopwatch(self.device)
        self._meter = Meter(counters(self.device) if self.group.world == 1 else [])
        self.pulse = Pulse(
            self.group, self.layout.stop if environment.heed_stop else None, partial(self._signs, trials)
        )
        try:
            self._get_ready(trials)
        except Stopped:
            self.students, self.stopped = [], True

    def _get_ready(self, trials: Sequence[Trial]) -> None:
        """Everything before the first step."""
        first = trials[0]
        self._forget_failures(trials)
        self.splits = prepare(first.data, data_dir=self.environment.data_dir, cache_dir=self.layout.cache)
        self.train = self._batches(first, "train")
        self.val = self._batches(first, "val") if self.splits.val is not None else None
        self.test = self._batches(first, "test")
        self._fetch(trials)
        self.teacher = self._teacher(first.teacher) if first.teacher else None
        self._look_at_test_images()
        self._image_2CHW = next(self.test.ordered(2, whole=True)).image
        self._out_t = self.teacher(self._image_2CHW) if self.teacher else None
        self.students = [student for trial in trials if (student := self._enter(trial)) is not None]
        places = [(student.trial.key, student.place) for student in self.students]
        self.group.same_on_all(str(places), "how far the trials have come")
        self._prepare([student for student in self.students if student.to_prepare])
        for student in [student for student in self.students if student.done]:  # with weights that are only measured
            with self._contained(student):
                self._end(student)
        self._monitor = SystemMonitor(self.device)
        self._saved, self._save_s = time.monotonic(), 0.0

    @property
    def done(self) -> bool:
        """Every member has ended."""
        return not (self.students or self._smaller or self.stopped)

    def step(self) -> list[EpochRecord]:
        """Train to the end of an epoch those members that are furthest behind; all, unless some have a stage before.

        Where somebody asks to stop, it breaks off after the batch, saves, and is `stopped`.
        """
        records: list[EpochRecord] = []
        try:
            if not self.stopped:
                self._step(records)
        except Stopped:
            self.save()
            self.stopped = True
        return records

    def _step(self, records: list[EpochRecord]) -> None:
        tick, begun = min(student.place for student in self.students)
        members = [student for student in self.students if student.place == (tick, begun)]
        self._train_epoch(tick, begun, members)
        shared = self._shared()
        system = self._monitor.read()
        for student in self._alive(members):
            with self._contained(student):
                records.append(self._close_epoch(student, shared, system))
                self._under_way.remove(student)
                self.sink.epoch(records[-1])
        self._under_way = []
        for student in members:
            with self._contained(student):
                self._end(student)
        del members
        with self.pulse.deferring():  # what has not been prepared is not to be saved
            self._begin_smaller()
        self._save_by_the_clock()

    def save(self) -> None:
        """Write a checkpoint of every member that is still in training."""
        if not self.leads:
            return
        begin = time.monotonic()
        shared = self._shared()
        for student in self.students:
            if not student.problem:  # a diverged one is about to end
                student.save(shared if student in self._under_way else NOTHING)
                self.environment.mirror.keep(student.folder)
        self._saved = time.monotonic()
        self._save_s = self._saved - begin

    def _save_by_the_clock(self) -> None:
        """A checkpoint, unless the last one is recent, or checkpoints would take more than a share of the time."""
        if time.monotonic() - self._saved >= max(self.environment.checkpoint_s, self._save_s / SAVING):
            self.save()
            self._end_the_late()

    def _end_the_late(self) -> None:
        """End members that have trained for too long; they have just been saved."""
        if self.environment.deadline_s is None or not self.leads:
            return
        for student in list(self.students):
            with self._contained(student):
                self._expect_in_time(student, self.environment.deadline_s)

    def _expect_in_time(self, student: Student, most: float) -> None:
        so_far = self._trained_s(student)
        if so_far > most:
            raise DeadlineError(
                f"it has trained for {so_far / 3600:.3g} h, and may for {most / 3600:.3g} h (resources.deadline_h). "
                "With more, and --retry-failed, it goes on from its checkpoint."
            )

    def _trained_s(self, student: Student) -> float:
        """Seconds that a member has trained so far, had it trained alone."""
        shared = self._shared() if student in self._under_way else NOTHING
        spent = (student.clock.total(), *shared)
        own_s, teacher_s, data_s, *_ = (sum(pair) for pair in zip(student.running.spent, spent, strict=True))
        epochs_s = sum(record.metrics[names.EPOCH_S] for record in student.history)
        return student.prepare_s + epochs_s + own_s + data_s + (teacher_s if student.needs_teacher else 0.0)

    def _shared(self) -> tuple[float, ...]:
        """Seconds of the teacher and of the data in the epoch under way; joules, and the seconds of these."""
        return self._teacher_clock.total(), self._data_clock.total(), *self._meter.used()

    def _signs(self, trials: Sequence[Trial]) -> list[Path]:
        """What shows that those trials make progress which have not ended."""
        return [self.layout.trial(trial.key).pulse for trial in trials if trial.key not in self.results]

    def _forget_failures(self, trials: Sequence[Trial]) -> None:
        """What failed before is tried again, unless somebody asks to stop first."""
        self.pulse.beat()
        for trial in trials if self.leads else ():
            self.layout.trial(trial.key).failed.unlink(missing_ok=True)

    def _batches(self, trial: Trial, split: str) -> Batches:
        return PulsedBatches(
            self.pulse,
            getattr(self.splits, split),
            self.splits.card,
            augment=trial.data.augment,
            batch_size=trial.train.batch_size,
            seed=trial.seed,
            device=self.device,
            workers=self.environment.workers,
            skip=trial.data.skip,
            shard=self.group.shard,
        )

    def _fetch(self, trials: Sequence[Trial]) -> None:
        """Get what the storage has of the trials, of their teacher, and of weights from outside."""
        mirror, first = self.environment.mirror, trials[0]
        for trial in (*trials, *([first.teacher] if first.teacher else [])):
            mirror.fetch(self.layout.trial(trial.key))
        if first.student.weights is not None:
            mirror.fetch_weights(place(self.layout, first.student, self.splits.card))

    def _teacher(self, trial: Trial) -> Teacher:
        compiled = self.environment.compiled
        return Teacher(trial, self.layout, self.splits, self.device, self.dtype, compiled=compiled)

    def _look_at_test_images(self) -> None:
        """Images on disk may be unreadable: better to hear of it now than after the last epoch."""
        if not self.splits.card.streamed:
            return
        if self.teacher is not None:
            self.teacher.logits(self.test)  # which are needed in the end
        else:
            deque(self.test.ordered(EVAL_BATCH), maxlen=0)

    def _expect_shareable(self, trials: Sequence[Trial]) -> None:
        """What cannot be shared between processes is refused."""
        for trial in trials if self.group.world > 1 else ():
            if trial.train.accumulate > 1 or isinstance(trial.train.optimizer, Dot):
                raise TrialError("accumulate and the optimizer dot work in one process: gpus_per_trial: 1.")

    def _enter(self, trial: Trial, parts: int = 1) -> Student | None:
        """A trial as a member; None when it has been trained before, or cannot be built, which its result says."""
        folder = self.layout.trial(trial.key)
        if folder.done:
            self.results[trial.key] = TrialResult.model_validate_json(folder.result.read_text(encoding="utf-8"))
            return None
        if self.leads:
            folder.failed.unlink(missing_ok=True)  # a storage may have kept it
            write_text(folder.trial, trial.model_dump_json(indent=1))
        self.sink.start(trial)
        try:
            return Student(
                trial,
                self.layout,
                image_2CHW=self._image_2CHW,
                probe=self._facts(trial, max(parts, trial.train.accumulate)),
                card=self.splits.card,
                dtype=self.dtype,
                group=self.group,
                parts=parts,
                compiled=self.environment.compiled,
            )
        except Exception as error:
            self._fail(trial, error, (), time.time())
            return None

    def _facts(self, trial: Trial, parts: int) -> Callable[[ModelOutput], Probe]:
        """What a member's terms get to know, but for the student's output."""
        images = min(trial.train.batch_size, len(self.splits.train.labels)) * self.train.augment.views
        known: dict[str, Any] = {
            "teacher": self._out_t,
            "classes": self.splits.card.classes,
            "labels_N": torch.as_tensor(self.splits.train.labels, device=self.device),
            "batch_size": math.ceil(images / parts),
        }
        return partial(Probe, **known, **(self.teacher.facts if self.teacher else {}))

    def _prepare(self, members: list[Student]) -> None:
        """Show the teacher's outputs for all training images to the members that ask for them, in one pass."""
        if self.teacher is None or not members:
            return
        outputs, clock = self.teacher.outputs(self.train), Stopwatch(self.device)
        while self._alive(members):
            with clock.running():
                seen = next(outputs, None)
            if seen is None:
                break
            for student in self._alive(members):
                with self._contained(student):
                    student.observe(*seen)
        shared_s = clock.read()
        for student in self._alive(members):
            with self._contained(student):
                student.prepare(shared_s)

    def _train_epoch(self, tick: int, begun: int, members: list[Student]) -> None:
        """Train the batches of an epoch but for those that were trained before an interruption."""
        for student in members:
            student.begin_epoch()
        self._under_way = list(members)
        self._teacher_clock.read()
        self._data_clock.read()
        self._meter.begin()
        steps = len(self.train)
        batches = iter(self.train.epoch(tick, start=begun))
        while True:
            with self._data_clock.running():
                batch = next(batches, None)
            if batch is None or not (alive := self._alive(members)):
                break
            self._train_batch(batch, alive, steps)
            self._save_by_the_clock()
            self.pulse.beat(step=True)

    def _train_batch(self, batch: Batch, members: list[Student], steps: int) -> None:
        out_t = None
        if self.teacher and any(student.needs_teacher for student in members):
            with self._teacher_clock.running():
                out_t = self.group.gather(self.teacher(batch.image), self.group.sizes(len(batch.target)))
        for student in members:
            with self._contained(student):
                try:
                    student.train_step(batch, out_t, steps)
                except torch.OutOfMemoryError:
                    self._expect_smaller(student)

    def _expect_smaller(self, student: Student) -> None:
        """Take out a member for whose batches there is no memory; it begins anew when what it holds has been let go.

        Raises:
            TrialError: its batches cannot be cut into smaller parts.
        """
        parts = 2 * student.parts
        if self.group.world > 1 or isinstance(student.trial.train.optimizer, Dot):
            raise TrialError("not enough memory, and neither several processes nor dot take a batch in parts")
        if parts > student.trial.train.batch_size // 2:
            raise TrialError(f"not enough memory, though each batch was cut into {student.parts} parts already")
        log.warning(
            "%s: not enough memory; it begins anew with each batch in %d parts, which batch norm sees one at a time",
            student.trial.key,
            parts,
        )
        self.students.remove(student)
        self._smaller.append((student.trial, parts))

    def _begin_smaller(self) -> None:
        """Begin the members anew that need smaller parts."""
        waiting, self._smaller = self._smaller, []
        if waiting and self.device.type == "cuda":
            torch.cuda.empty_cache()
        for trial, parts in waiting:
            checkpoint.remove(self.layout.trial(trial.key))
            if (student := self._enter(trial, parts)) is not None:
                self.students.append(student)
                with self._contained(student):
                    self._prepare([student] if student.to_prepare else [])

    def _alive(self, members: list[Student]) -> list[Student]:
        return [student for student in members if not student.problem and student in self.students]

    def _close_epoch(self, student: Student, shared: tuple[float, ...], system: Mapping[str, float]) -> EpochRecord:
        student.settle()
        begin = time.perf_counter()
        val = self._evaluate(student, self.val) if self.val else {}
        eval_s = time.perf_counter() - begin
        spent = (student.clock.read(), *shared)
        own_s, teacher_s, data_s, joules, metered_s = (
            before + since for before, since in zip(student.running.spent, spent, strict=True)
        )
        epoch_s = own_s + data_s + (teacher_s if student.needs_teacher else 0.0)
        metrics = {
            names.OWN_S: own_s,
            names.TEACHER_S: teacher_s,
            names.DATA_S: data_s,
            names.EVAL_S: eval_s,
            names.EPOCH_S: epoch_s,
            names.IMAGES_PER_S: len(self.splits.train.labels) / epoch_s,
            names.PEAK_MIB: peak_mib(self.device),
            **({names.EPOCH_J: joules * epoch_s / metered_s} if joules > 0 else {}),
            **system,
        }
        position = student.position  # nothing may stop from here on: a checkpoint has the whole end of an epoch or none
        if self.leads and position.stage == MAIN and position.epoch in looked_at(position.epochs):
            pictures = self._pictures(student, digits=3)
            student.moments += [Moment(epoch=position.epoch, pictures=pictures)] if pictures else []
        return student.end_epoch(metrics, val)

    def _evaluate(self, student: Student, batches: Batches, *looks: Look) -> dict[str, float]:
        answers_N = self.teacher.answers(batches) if self.teacher else None
        return evaluate(student.deployed, batches, self.dtype, answers_N, self.group, looks)

    def _test(self, student: Student, *looks: Look) -> dict[str, float]:
        confidence = Confidence(self.teacher.logits(self.test) if self.teacher else None, self.device)
        return self._evaluate(student, self.test, confidence, *looks) | confidence.figures(self.group)

    def _end(self, student: Student) -> None:
        if student not in self.students:
            return  # failed on the way
        if student.problem:
            self._finish(student, "diverged", {})
        elif student.done:
            self.pulse.beat(step=True)
            with self.pulse.deferring():  # the best weights take the place of the last: those are not to be saved
                self._finish(student, "finished", self._final_figures(student))

    def _final_figures(self, student: Student) -> dict[str, float]:
        """What is measured once: test accuracy with last and best weights, size and speed; the teacher's too."""
        counts = Counts(self.splits.card.classes, self.device)
        last = self._test(student, counts)
        confusion = counts.record(self.group)
        figures = {names.test("last", name): value for name, value in last.items()}
        if self.leads:
            write_text(student.folder.confusion, confusion.model_dump_json())
            checkpoint.save_weights(student.folder.last, student.weights())
            self._keep_snapshots(student)
        if student.best is not None:
            if self.leads:
                checkpoint.save_weights(student.folder.best, student.best.weights)
            figures |= {names.BEST_EPOCH: float(student.best.epoch), names.BEST_VAL_TOP1: student.best.top1}
            figures |= {names.test("best", name): value for name, value in self._best_figures(student, last).items()}
        figures |= compression(student.deployed, self.splits.card) if self.leads else {}
        figures[names.PREPARE_S] = student.prepare_s
        figures[names.WALL_S] = student.prepare_s + sum(record.metrics[names.EPOCH_S] for record in student.history)
        joules = sum(record.metrics.get(names.EPOCH_J, math.nan) for record in student.history)
        figures[names.TRIAL_J] = joules or math.nan
        return figures | (self.teacher.metrics if self.teacher else {})

    def _keep_snapshots(self, student: Student) -> None:
        pictures = self._pictures(student, digits=6)
        if pictures:
            kept = Pictures(pictures=pictures, earlier=tuple(student.moments))
            write_text(student.folder.snapshots, kept.model_dump_json())

    def _pictures(self, student: Student, digits: int) -> dict[str, Picture]:
        """What the terms show of the same few training images, with the weights as they are."""
        if self.teacher is None or not student.objective.has_snapshots:
            return {}
        images = min(student.trial.train.batch_size, SNAPSHOT_IMAGES)
        try:
            batch = self.train.of_classes(SNAPSHOT_CLASSES, max(1, images // SNAPSHOT_CLASSES))
            snapshots = student.snapshots(batch, self.teacher(batch.image))
            return {name: _picture(snapshot, digits) for name, snapshot in snapshots.items()}
        except Exception as error:  # a picture is no reason to lose a trained network
            log.warning("%s keeps no picture: %s: %s", student.trial.key, type(error).__name__, error)
            return {}

    def _best_figures(self, student: Student, last: dict[str, float]) -> dict[str, float]:
        assert student.best is not None
        if student.best.epoch == student.trial.train.epochs:
            return last
        student.deployed.load_state_dict(student.best.weights)
        return self._test(student)

    def _finish(self, student: Student, status: str, figures: dict[str, float]) -> None:
        result = self._result(student.trial, status, figures, student.problem, student.history, student.started)
        result = result.model_copy(update={"provenance": {**result.provenance, **self._unusual(student)}})
        if self.leads:
            write_text(student.folder.result, result.model_dump_json(indent=1))
            checkpoint.remove(student.folder)
        self.group.same_on_all(status, f"how {result.key} ended")  # from here on the others find it on disk
        self._announce(result)
        self.students.remove(student)

    def _unusual(self, student: Student) -> dict[str, str]:
        """What a reader of the result has to know of how it was trained, beside device and versions."""
        found = {}
        if self.group.world > 1:
            found["processes"] = str(self.group.world)
        if self.environment.compiled:
            found["compiled"] = "torch.compile"
        if student.parts > (asked := student.trial.train.accumulate):
            found["accumulate"] = f"{student.parts} instead of {asked}, for want of memory"
        return found

    @contextmanager
    def _contained(self, student: Student) -> Iterator[None]:
        """An error of one member ends that member alone; it is tried again by the next run, from its checkpoint."""
        try:
            yield
        except Exception as error:
            self._fail(student.trial, error, student.history, student.started)
            self.students = [member for member in self.students if member is not student]

    def _fail(self, trial: Trial, error: Exception, history: Sequence[EpochRecord], started: float) -> None:
        if isinstance(error, StorageError | GroupError | Stopped):
            raise error
        if self.group.world > 1:  # the other processes cannot know of it
            text = f"{trial.key} ({', '.join(trial.objective)}): {type(error).__name__}: {error}"
            raise TrialError(
                f"{text}. With several processes this ends its cohort; cohort: 1 spares the others."
            ) from error
        path = self.layout.trial(trial.key).error
        write_text(path, "".join(traceback.format_exception(error)))
        reason = f"{type(error).__name__}: {error} (traceback in {path})"
        result = self._result(trial, "failed", {}, reason, history, started)
        write_text(self.layout.trial(trial.key).failed, result.model_dump_json(indent=1))
        self._announce(result)

    def _announce(self, result: TrialResult) -> None:
        self.results[result.key] = result
        if self.leads:
            self.layout.trial(result.key).pulse.unlink(missing_ok=True)
            self.environment.mirror.settle(self.layout.trial(result.key))
        self.sink.finish(result)

    def _result(
        self,
        trial: Trial,
        status: str,
        figures: dict[str, float],
        reason: str,
        history: Sequence[EpochRecord],
        started: float,
    ) -> TrialResult:
        return TrialResult.model_validate(
            {
                "key": trial.key,
                "status": status,
                "metrics": {name: value for name, value in figures.items() if math.isfinite(value)},
                "epochs": tuple(history),
                "provenance": provenance(self.device, self.dtype),
                "started": started,
                "ended": time.time(),
                "reason": reason,
            }
        )


def looked_at(epochs: int) -> set[int]:
    """Before the last epoch: the first, and after each quarter of the training."""
    return {1, epochs // 4, epochs // 2, 3 * epochs // 4} - {0, epochs}


def _picture(snapshot: Snapshot, digits: int) -> Picture:
    matrix = tuple(tuple(float(f"{entry:.{digits}g}") for entry in row) for row in snapshot.matrix_NM.tolist())
    classes = None if snapshot.classes_N is None else tuple(snapshot.classes_N.tolist())
    return Picture(about=snapshot.about, matrix=matrix, classes=classes)
