"""Trials of about a second through the whole stack: Tune, the engine, checkpoints and results, the tracker on SQLite.

There are two kinds of a second. In `waits` a step computes next to nothing and then sleeps, as a worker does whose GPU
is busy: the cores are free for the driver, and figures are steady on a noisy machine. In `computes` a step is a core's
work, of so many images that a trial which trains alone takes a second on this device: on a machine with as many slots
as cores the driver takes its time from the trials.

Workers write down when they were at work, so that a slot's time adds up: training (batches, the teacher's passes and
steps); validation; test, measurement and files; beginning (data, teacher, network); waiting for the driver.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import yaml
from rich.console import Console

from benchmarks.training.speed import shown
from benchmarks.training.sweeps import students
from benchmarks.training.targets import Target
from benchmarks.transport.tables import Table
from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.sweep import tune
from otkd.sweep.plan import Plan, make
from otkd.sweep.runner import Mailbox
from otkd.sweep.session import Options, Session
from otkd.sweep.spec import load
from otkd.train import CohortTrainer, Environment, fit
from otkd.train.device import peak_mib
from otkd.train.student import Student

SLOTS = 2
TRIALS, QUICK_TRIALS = 200, 12
SEEDS = 2
WAIT, SPANS = "OTKD_BENCH_WAIT_S", "OTKD_BENCH_SPANS"
"""Variables by which workers hear how long a step waits, and where they write."""

LEGEND = """\
trial s: from a trial's begin to its end, as its result says. wall: of the students' stage in the driver, the start of
workers included. training s: batches, the teacher's passes and steps. fixed s / trial: everything but training, of a
worker after its first trial."""

TARGETS = (
    Target("200 trials of a second take 1.15 × their seconds by the slots", "wall / trial seconds", 1.15, most=True),
    Target("a trial after the first costs 0.5 s beside its training", "fixed s / trial", 0.5, most=True),
)


class Work(NamedTuple):
    """What a trial's second is made of."""

    title: str
    images: int
    side: int
    epochs: int
    wait_s: float
    """What each step waits."""


BATCH = 16
WAITS = Work("waits", images=64, side=8, epochs=5, wait_s=0.05)
COMPUTES = Work("computes", images=160, side=16, epochs=5, wait_s=0.0)


class Span(NamedTuple):
    """A time in which a worker was at work."""

    pid: int
    what: str
    """`begin` or `step`."""
    start: float
    end: float
    training_s: float
    """Seconds of it in training."""


class Timed(NamedTuple):
    """What was measured."""

    results: list[TrialResult]
    """Of the students."""
    spans: list[Span]
    start: float
    """When the driver began the students' stage, in seconds since 1970."""
    end: float
    flush_s: float
    """Seconds that the tracker took after that."""
    driver_cpu_s: float
    driver_mib: float
    """The driver's largest memory."""


def measure(folder: Path, quick: bool = False) -> Iterator[Table]:
    """Run both kinds in `folder`, and tell of each what it cost and where the time went."""
    trials = QUICK_TRIALS if quick else TRIALS
    for work in (WAITS, of_a_second(COMPUTES, folder / "alone")):
        with ProcessPoolExecutor(1, get_context("spawn")) as driver:  # its memory is that of this sweep alone
            timed = driver.submit(run, work, trials, folder / work.title).result()
        about = f"{trials} trials, {SLOTS} slots, a step {work.title}"
        yield shown(about, [summary(timed)])
        yield shown(f"{about}: seconds of a slot for each trial", shares(timed))


def of_a_second(work: Work, folder: Path) -> Work:
    """The same with as many images as take a second of training here."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        seconds = alone.submit(training_s, work, folder).result()
    return work._replace(images=max(1, round(work.images / seconds / BATCH)) * BATCH)


def training_s(work: Work, folder: Path) -> float:
    """Seconds that a student trains, the second of this process: with the first, code is loaded."""
    folder.mkdir(parents=True)
    plan, clock = planned(work, 2 * SEEDS, folder / "sweep.yaml"), Clock()
    environment = Environment(layout=Layout(folder / "runs"), device="cpu", threads=1)
    with mock.patch.object(CohortTrainer, "_train_epoch", clock.timed(CohortTrainer._train_epoch)):
        for item in (*plan.teachers, *plan.students[:2]):
            clock.take()
            fit([item.trial], Mailbox(), environment)
    return clock.take()


def run(work: Work, trials: int, folder: Path) -> Timed:
    """One sweep from an empty folder."""
    layout, spans = Layout(folder / "runs"), folder / "spans"
    spans.mkdir(parents=True)
    plan = planned(work, trials, folder / "sweep.yaml")
    stages: list[tuple[float, float]] = []
    with watched(work, spans, stages), Session(plan, layout, Console(quiet=True)) as session:
        cpu = time.process_time()
        session.train(Options())
        cpu = time.process_time() - cpu
        begin = time.monotonic()
        session.flush()
        flush_s = time.monotonic() - begin
    start, end = stages[-1]
    found = [span for file in spans.iterdir() for span in read(file) if span.start >= start]
    mib = peak_mib(torch.device("cpu"))
    return Timed(finished(students(layout), trials), found, start, end, flush_s, cpu, mib)


def planned(work: Work, trials: int, file: Path) -> Plan:
    """So many students of one teacher, each in a worker of its own."""
    options = {"classes": 4, "side": work.side, "train": work.images * 5 // 4, "test": 64}
    weights = [round(0.5 + index / trials, 6) for index in range(trials // SEEDS)]
    sweep = {
        "name": f"bench-{work.title}",
        "question": "What does a trial cost beside its training?",
        "data": {"name": "synthetic", "options": options, "val": 0.2},
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "train": {"epochs": work.epochs, "batch_size": BATCH, "schedule": {"name": "constant"}},
        "methods": {"kd": {"ce": 0.1, "kd": {"weight": {"grid": weights}}}},
        "seeds": list(range(SEEDS)),
        "resources": {"cohort": 1},
    }
    file.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return make(load(file))


@contextmanager
def watched(work: Work, spans: Path, stages: list[tuple[float, float]]) -> Iterator[None]:
    """Have otkd's runner use workers that wait and write down, and note when each of its stages ran."""

    class Runner(tune.RayRunner):
        def run(self, *given: Any) -> None:
            start = time.time()
            super().run(*given)
            stages.append((start, time.time()))

    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    variables = {WAIT: str(work.wait_s), SPANS: str(spans.resolve()), "PYTHONPATH": path}
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(tune, "CohortTrainable", Watched),
        mock.patch.object(tune, "RayRunner", Runner),
    ):
        yield


class Watched(tune.CohortTrainable):
    """A cohort whose worker writes down when it was at work."""

    def setup(self, config: dict[str, Any]) -> None:
        self._clock = Clock()
        self._file = Path(os.environ[SPANS]) / f"{os.getpid()}.jsonl"
        Student.train_step = waiting(Student.train_step, float(os.environ[WAIT]))  # type: ignore[method-assign]
        CohortTrainer._train_epoch = self._clock.timed(CohortTrainer._train_epoch)  # type: ignore[method-assign]
        super().setup(config)

    def step(self) -> dict[str, Any]:
        self._since = time.time()
        result = super().step()
        self._tell("step")
        return result

    def _begin(self) -> None:
        """Of the first step of a trial."""
        super()._begin()
        self._tell("begin")

    def _tell(self, what: str) -> None:
        """Write down what this worker did since it last did something else."""
        now = time.time()
        span = Span(os.getpid(), what, self._since, now, self._clock.take())
        self._since = now
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(span) + "\n")


def waiting(function: Callable[..., None], seconds: float) -> Callable[..., None]:
    """The function, which then waits a little."""

    @wraps(function)
    def longer(*given: Any) -> None:
        function(*given)
        time.sleep(seconds)

    return longer


class Clock:
    """Adds up what a function takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def clocked(*given: Any) -> None:
            begin = time.perf_counter()
            function(*given)
            self.seconds += time.perf_counter() - begin

        return clocked

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def read(file: Path) -> list[Span]:
    return [Span(*json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def finished(results: list[TrialResult], trials: int) -> list[TrialResult]:
    """The results, when all trials have finished.

    Raises:
        RuntimeError: they have not.
    """
    sound = [result for result in results if result.status == "finished"]
    if len(sound) < trials:
        reasons = [result.reason for result in results if result.status != "finished"]
        raise RuntimeError(f"{len(sound)} of {trials} trials finished: {reasons[:3]}")
    return sound


def summary(timed: Timed) -> dict[str, Any]:
    """What the sweep cost beside its trials."""
    wall, trials = timed.end - timed.start, len(timed.results)
    inside = sum(result.ended - result.started for result in timed.results)
    return {
        "trials": str(trials),
        "wall s": wall,
        "trial s": inside / trials,
        "wall / trial seconds": wall / (inside / SLOTS),
        "training s": sum(span.training_s for span in timed.spans) / trials,
        "wall / training seconds": wall / (sum(span.training_s for span in timed.spans) / SLOTS),
        "first begins s": min(workers(timed.spans), key=lambda own: own[0].start)[0].start - timed.start,
        "fixed s / trial": fixed(timed.spans),
        "flush s": timed.flush_s,
        "driver CPU s / trial": timed.driver_cpu_s / trials,
        "driver MiB": timed.driver_mib,
    }


def workers(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans of each worker, in order."""
    own: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        own.setdefault(span.pid, []).append(span)
    return list(own.values())


def fixed(spans: Sequence[Span]) -> float:
    """Mean seconds of a trial beside its training, from the end of a worker's first trial to the end of its last."""
    beside, trials = 0.0, 0
    for own in workers(spans):
        begins = [index for index, span in enumerate(own) if span.what == "begin"]
        later = own[begins[1] :] if len(begins) > 1 else []
        if later:
            beside += later[-1].end - own[begins[1] - 1].end - sum(span.training_s for span in later)
            trials += len(begins) - 1
    return beside / trials if trials else float("nan")


def shares(timed: Timed) -> list[dict[str, Any]]:
    """Mean seconds of a slot for each trial, by what they went to."""
    trials, wall = len(timed.results), timed.end - timed.start
    training = sum(span.training_s for span in timed.spans)
    stepping, beginning = (
        sum(span.end - span.start for span in timed.spans if span.what == what) for what in ("step", "begin")
    )
    validating = sum(record.metrics[names.EVAL_S] for result in timed.results for record in result.epochs)
    parts = {
        "training: batches, teacher, steps": training,
        "validation": validating,
        "test, measurement, files": stepping - training - validating,
        "beginning: data, teacher, network": beginning,
        "waiting for the driver": SLOTS * wall - stepping - beginning,
    }
    whole = SLOTS * wall / trials
    return [{"part": part, "s": s / trials, "% of all": 100 * s / trials / whole} for part, s in parts.items()]
