"""How long trials will take, from what others like them took. Imports neither torch nor ray."""

from __future__ import annotations

import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

from otkd.core.layout import Layout
from otkd.core.trial import Data, Trial
from otkd.sweep.cohorts import cohorts
from otkd.sweep.earlier import Pace, earlier, kinds, mean_pace, pace_of
from otkd.sweep.plan import Plan, stage_epochs
from otkd.sweep.search import Candidate, Study, configurations
from otkd.sweep.spec import Resources
from otkd.sweep.tried import Tried, keys_of, trials_of

HERE = "this run"
"""Stands for the device of what is running now."""
EXACT = 2
"""The first so many likenesses are trials with the same terms; the others are the nearest that there are."""
DRIVER = Path("/proc/driver/nvidia/gpus")


class Machine(NamedTuple):
    """What trials run on."""

    cores: int
    gpus: tuple[str, ...] = ()
    """Name of each."""

    def slots(self, resources: Resources, cpu: float) -> int:
        """How many cohorts run at the same time, as the Ray runner counts them."""
        world, gpu = resources.gpus_per_trial, self._gpu(resources)
        by_cpu = int(self.cores / (world * min(cpu, max(self.cores // world, 1))))
        return max(1, min(by_cpu, int(len(self.gpus) / (world * gpu))) if gpu else by_cpu)

    def devices(self, resources: Resources, cpu: float) -> tuple[str, ...]:
        """The device of a trial as results name it, and a wider name for those like it."""
        threads = max(1, int(min(cpu, self.cores)))
        return wider(self.gpus[0] if self._gpu(resources) else f"CPU, {threads} thread{'s' * (threads > 1)}")

    def _gpu(self, resources: Resources) -> float:
        asked, world = resources.gpu, resources.gpus_per_trial
        return (asked if asked is not None and (asked == 0 or world == 1) else 1) if self.gpus else 0


def machine() -> Machine:
    """This machine: its cores, and the GPUs that this process may use, asked without torch."""
    gpus = [_model(file) for file in sorted(DRIVER.glob("*/information"))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = gpus[: sum(entry.strip() not in ("", "-1") for entry in visible.split(","))]
    return Machine(os.cpu_count() or 1, tuple(gpus))


def wider(device: str) -> tuple[str, str]:
    """A device as results name it, and its kind."""
    return device, "CPU" if device.startswith("CPU") else "GPU"


def measured(layout: Layout) -> Paces:
    """The paces of all trials that were trained in this `runs/`."""
    paces = Paces()
    for key, entry in earlier(layout).items():
        if entry.pace is not None:
            paces.add(key, entry.kinds, wider(entry.device), entry.pace)
    return paces


class Found(NamedTuple):
    """A pace for a trial, and what it rests on."""

    pace: Pace
    trials: frozenset[str]
    exact: bool
    """Whether these have the same terms."""


class Paces:
    """Measured paces of trials, to be asked for those of others."""

    def __init__(self) -> None:
        self._measured: dict[tuple[str, str], dict[str, Pace]] = defaultdict(dict)
        self._found: dict[tuple[str, ...], Found | None] = {}

    def add(self, key: str, kinds: Sequence[str], devices: Iterable[str], pace: Pace) -> None:
        """A trial took so long on a device (its name, and wider ones); it replaces what was known of that trial."""
        for device in devices:
            for kind in kinds:
                self._measured[kind, device][key] = pace
        self._found.clear()

    def of(self, kinds: Sequence[str], devices: Sequence[str]) -> Found | None:
        """The pace of those most like a trial; of two likenesses the closer one counts, then the nearer device."""
        asked = (*kinds, *devices)
        if asked not in self._found:
            self._found[asked] = self._look(kinds, devices)
        return self._found[asked]

    def _look(self, kinds: Sequence[str], devices: Sequence[str]) -> Found | None:
        for rank, kind in enumerate(kinds):
            for device in devices:
                if measured := self._measured.get((kind, device)):
                    return Found(mean_pace(list(measured.values())), frozenset(measured), rank < EXACT)
        return None


class Task(NamedTuple):
    """What is left of a trial."""

    trial: Trial
    epochs: float


class Forecast(NamedTuple):
    """How long trials will take."""

    seconds: float
    known: int
    """Trials that it covers."""
    unknown: int
    """Trials like which none was measured."""
    basis: frozenset[str]
    """Keys of the earlier trials that it rests on."""
    exact: bool
    """Whether all of those have the same terms as a trial that they stand for."""


class _Facts(NamedTuple):
    trial: Trial
    kinds: tuple[str, ...]
    images: tuple[int, int, int]


class Clock:
    """Turns trials into seconds.

    Args:
        devices: names of a trial's device, the nearest first, by the CPU cores that it gets.
    """

    def __init__(self, paces: Paces, devices: Callable[[Trial], Sequence[str]]) -> None:
        self.paces, self._devices = paces, devices
        self._facts: dict[int, _Facts] = {}

    def found(self, trial: Trial) -> Found | None:
        """The pace of a trial."""
        return self.paces.of(self._of(trial).kinds, self._devices(trial))

    def learn(self, key: str, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Take in what an epoch of a trial that runs now took."""
        pace = pace_of(trial.data.val, [metrics])
        if pace is not None:
            self.paces.add(key, self._of(trial).kinds, (HERE,), pace)

    def cohort(self, tasks: Sequence[Task]) -> float | None:
        """Seconds of trials that train together; of those unknown nothing is counted, None where all are."""
        own, shared = 0.0, 0.0
        known = [(task, found.pace) for task in tasks if (found := self.found(task.trial)) is not None]
        for task, pace in known:
            train, val, test = self._of(task.trial).images
            own += task.epochs * (train * pace.own_s + val * pace.eval_s) + test * pace.eval_s
            shared = max(shared, task.epochs * train * pace.shared_s)
        return own + shared if known else None

    def _of(self, trial: Trial) -> _Facts:
        """Worked out once for a trial, which is kept, so that its id stays its own."""
        if id(trial) not in self._facts:
            self._facts[id(trial)] = _Facts(trial, kinds(trial.model_dump(mode="json")), images(trial.data))
        return self._facts[id(trial)]


def images(data: Data) -> tuple[int, int, int]:
    """Images that are trained on, held out for validation, and forwarded in the final test."""
    card = data.card
    all_ = min(data.limit or card.train, card.train)
    val = int(data.val if data.val >= 1 else round(data.val * all_))
    return all_ - val, val, card.test * (2 if val else 1)


def makespan(slots: int, busy: Iterable[float], waiting: Iterable[float]) -> float:
    """Seconds until all is done, when what waits is dealt to the slots, longest first.

    Args:
        busy: seconds that the slots in use still need.
    """
    ends = sorted(busy)
    ends = [0.0] * max(slots - len(ends), 0) + ends
    heapq.heapify(ends)
    for length in sorted(waiting, reverse=True):
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends, default=0.0)


def all_epochs(trial: Trial) -> int:
    """Epochs of a trial, those of the stages before its main one included."""
    return trial.train.epochs + stage_epochs(trial.objective)


def forecast(trials: Sequence[Trial], slots: int, most: int | str, clock: Clock) -> Forecast:
    """How long trials of one stage take together, from their beginning."""
    found = [clock.found(trial) for trial in trials]
    known = [entry for entry in found if entry is not None]
    groups = cohorts(trials, slots, most)  # type: ignore[arg-type]
    lengths = [clock.cohort([Task(trial, all_epochs(trial)) for trial in group]) for group in groups]
    return Forecast(
        seconds=makespan(slots, (), (length for length in lengths if length is not None)),
        known=len(known),
        unknown=len(found) - len(known),
        basis=frozenset().union(*(entry.trials for entry in known)),
        exact=all(entry.exact for entry in known),
    )


def of_plan(plan: Plan, pending: Sequence[Trial], layout: Layout, paces: Paces, there: Machine) -> Forecast:
    """How long what a plan still has to train takes on a machine; of a search the most that it may take.

    Args:
        pending: what is left of the plan's own trials.
    """
    resources = plan.spec.resources
    clock = Clock(paces, lambda trial: there.devices(resources, cores(trial, resources)))
    parts = [
        forecast(trials, there.slots(resources, cores(trials[0], resources)), resources.cohort, clock)
        for trials in stages_of(plan, pending, layout)
        if trials
    ]
    return Forecast(
        seconds=sum(part.seconds for part in parts),
        known=sum(part.known for part in parts),
        unknown=sum(part.unknown for part in parts),
        basis=frozenset().union(*(part.basis for part in parts)),
        exact=all(part.exact for part in parts),
    )


def stages_of(plan: Plan, pending: Sequence[Trial], layout: Layout) -> list[list[Trial]]:
    """What is left to train, by stages that follow each other; of a search one of the ways it may go."""
    stages = [*by_stage(pending)]
    if plan.studies:
        tried = Tried(plan, layout)
        drawn = drawn_of(plan)
        candidates = [*tried.open, *islice(_new(tried, drawn), tried.new)]
        trials = [trial for candidate in candidates for trial in trials_of(candidate)]
        stages.append([trial for trial in trials if not layout.trial(trial.key).done])
        if plan.spec.search.final:
            stages += by_stage(final_of(plan, tried, drawn).pending(layout))
    return stages


def final_of(plan: Plan, tried: Tried, drawn: Mapping[Study, Sequence[Candidate]]) -> Plan:
    """What follows a search: its winners again, or others in their place as long as it is not over."""
    if tried.final is not None and not tried.is_left:
        return tried.final
    return plan.final({study: found[0].values for study, found in drawn.items() if found})


def _new(tried: Tried, drawn: Mapping[Study, Sequence[Candidate]]) -> Iterator[Candidate]:
    """Configurations that the search may yet begin, the studies in turns, as the search takes them."""
    begun = {key for standing in tried.standings for key in keys_of(standing.candidate)}
    left = [
        [candidate for candidate in found if not keys_of(candidate) & begun]
        for study, found in drawn.items()
        if study not in tried.over
    ]
    for turn in zip_longest(*left):
        yield from (candidate for candidate in turn if candidate is not None)


def drawn_of(plan: Plan) -> dict[Study, list[Candidate]]:
    """The configurations of each study, or such as may stand for them."""
    return {study: _candidates(plan, study) for study in plan.studies}


def _candidates(plan: Plan, study: Study) -> list[Candidate]:
    """The configurations of a study; where they are not known in advance, as many random ones in their place."""
    known = list(plan.known(study))
    if known or plan.spec.search.kind != "optuna":
        return known
    drawn = plan.spec.search.model_copy(update={"kind": "random"})
    sound = list(plan._replace(spec=plan.spec.model_copy(update={"search": drawn})).known(study))
    return list(islice(cycle(sound), configurations(drawn, study)))


def by_stage(trials: Sequence[Trial]) -> tuple[list[Trial], list[Trial]]:
    """Teachers, and students."""
    return [t for t in trials if t.teacher is None], [t for t in trials if t.teacher is not None]


def cores(trial: Trial, resources: Resources) -> float:
    """CPU cores that a trial's cohort gets."""
    return resources.cpu if trial.teacher is not None else resources.teacher_cpu or resources.cpu


def _model(file: Path) -> str:
    """A GPU's name, as torch has it."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")
