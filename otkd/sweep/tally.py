"""How a sweep stands, counted from what its trials say. Imports neither torch nor ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import NamedTuple

from otkd.core import names
from otkd.core.records import EpochRecord, Label

TEACHERS, SEARCH, STUDENTS = "teachers", "search", "students"

RULES = {names.BEST_VAL_TOP1: "val", names.test("last", names.TEST_TOP1): "test, last epoch"}
"""Figures by which methods are compared while a sweep runs, the first that all have, and how a person reads each."""


class End(NamedTuple):
    """How a trial ended."""

    status: str
    """`finished`, `diverged`, `failed` or `pruned`."""
    metrics: Mapping[str, float]
    reason: str = ""


class Counts(NamedTuple):
    """Trials by state; each trial is in one of them."""

    done: int
    running: int
    failed: int
    pruned: int
    diverged: int
    to_do: int

    def __str__(self) -> str:
        always = {"done": self.done, "running": self.running, "to do": self.to_do}
        others = {"failed": self.failed, "diverged": self.diverged, "pruned": self.pruned}
        return ", ".join(f"{count} {name}" for name, count in {**always, **others}.items() if count or name in always)


class Stage(NamedTuple):
    """A stage of the sweep and how far it is."""

    name: str
    ended: int
    """Those that failed not counted."""
    trials: int


class ToCome(NamedTuple):
    """Trials that only a search will name, at most."""

    searched: int = 0
    finals: int = 0
    """Its winners again, and their teachers."""


NOTHING = ToCome()


class Best(NamedTuple):
    """A method's best variant of one pair."""

    title: str
    top1: float
    """Mean over its finished seeds, percent."""
    seeds: int
    rule: str
    """What was measured, on which images."""


class Tally:
    """Which trials run, which have ended and how.

    Args:
        labels: how the sweep presents its trials; a trial may have several.
    """

    def __init__(self, labels: Iterable[Label]) -> None:
        self.running: dict[str, EpochRecord | None] = {}
        """Trials in training → their last epoch, None before the first."""
        self.ended: dict[str, End] = {}
        self.present(labels)

    def present(self, labels: Iterable[Label]) -> None:
        """Take these labels; those of a search grow while it runs."""
        self.labels: dict[str, list[Label]] = {}
        for label in labels:
            self.labels.setdefault(label.key, []).append(label)

    def start(self, key: str) -> None:
        """A trial begins, or goes on."""
        self.ended.pop(key, None)
        self.running.setdefault(key, None)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""
        self.running[record.key] = record

    def end(self, key: str, end: End) -> None:
        """A trial has ended."""
        self.running.pop(key, None)
        self.ended[key] = end

    def title(self, key: str) -> str:
        """What a person reads for a trial."""
        return self.labels[key][0].title if key in self.labels else key

    def counts(self) -> Counts:
        """Every trial once."""
        states = [self._state(key) for key in self.labels.keys() | self.running.keys()]
        states += [self.ended[key].status for key in self.ended.keys() - self.labels.keys() - self.running.keys()]
        kinds = ("finished", "running", "failed", "pruned", "diverged", "to do")
        return Counts(*map(states.count, kinds))

    def stages(self) -> list[Stage]:
        """The stages that the sweep has, in order."""
        keys: dict[str, set[str]] = {TEACHERS: set(), SEARCH: set(), STUDENTS: set()}
        for key, own in self.labels.items():
            keys[stage_of(own[0])].add(key)
        ended = {key for key, end in self.ended.items() if end.status != "failed"}
        return [Stage(name, len(own & ended), len(own)) for name, own in keys.items() if own]

    @property
    def searched(self) -> int:
        """The trials that the search has named so far."""
        return sum(stage.trials for stage in self.stages() if stage.name == SEARCH)

    def slots(self, places: Mapping[str, object]) -> int:
        """How many slots are busy.

        Args:
            places: trial → what it shares a slot with others by; by default a configuration's seeds share one.
        """
        return len({places.get(key, self._place(key)) for key in self.running})

    def best(self) -> list[Best]:
        """Every method of every pair by the variant whose finished seeds have the highest mean, the best first."""
        variants: dict[tuple[str, ...], dict[str, End]] = defaultdict(dict)
        for key, label in self._finished_students():
            variants[label.pair, label.method, stage_of(label), configuration(label)][key] = self.ended[key]
        methods: dict[tuple[str, ...], list[Best]] = defaultdict(list)
        for (pair, method, stage, title), ends in variants.items():
            found = _mean(title, list(ends.values()))
            if found is not None and not (stage == SEARCH and found.rule != "val"):
                methods[pair, method, stage].append(found)
        return sorted((max(found, key=_top1) for found in methods.values()), key=_top1, reverse=True)

    def _finished_students(self) -> Iterator[tuple[str, Label]]:
        for key, end in self.ended.items():
            if end.status == "finished":
                yield from ((key, label) for label in self.labels.get(key, ()) if label.role == "student")

    def _state(self, key: str) -> str:
        if key in self.running:
            return "running"
        return self.ended[key].status if key in self.ended else "to do"

    def _place(self, key: str) -> str:
        searched = key in self.labels and stage_of(self.labels[key][0]) == SEARCH
        return configuration(self.labels[key][0]) if searched else key


def stage_of(label: Label) -> str:
    """The stage that a trial belongs to."""
    if label.role == "teacher":
        return TEACHERS
    return SEARCH if label.stage == "search" else STUDENTS


def configuration(label: Label) -> str:
    """What a trial has in common with those of other seeds, as a person reads it."""
    return label.title.rpartition(" · seed ")[0]


def reached(record: EpochRecord) -> str:
    """How far a trial is: `30/200`, or `fit 3/20` in a stage before the main one."""
    stage = "" if record.stage == "train" else f"{record.stage} "
    return f"{stage}{record.epoch}/{record.epochs}"


def top1(record: EpochRecord) -> tuple[float, str] | None:
    """Top-1 after an epoch in percent, and on which images: validation, else training; None for a stage before."""
    for name in (names.VAL_TOP1, names.TRAIN_TOP1):
        if name in record.metrics:
            return record.metrics[name], name.split("/")[0]
    return None


def _top1(best: Best) -> float:
    return best.top1


def _mean(title: str, ends: list[End]) -> Best | None:
    for metric, rule in RULES.items():
        if all(metric in end.metrics for end in ends):
            return Best(title, fmean(end.metrics[metric] for end in ends), len(ends), rule)
    return None
