"""What a search has come to, as its log and the folders of its trials say. Imports neither torch nor ray."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.records import SweepInfo
from otkd.core.trial import Trial, digest
from otkd.sweep.plan import Plan
from otkd.sweep.results import is_sound, result_of
from otkd.sweep.search import Candidate, Search, Study, configurations
from otkd.sweep.searchers import Begun, Ending, Log, Over, Report
from otkd.sweep.tally import ToCome


@dataclass
class Standing:
    """How one configuration stands."""

    candidate: Candidate
    earlier: Ending | None = None
    """How it ended in an earlier session."""
    heard: Report | None = None
    """How it stood when an earlier session heard of it last, which did not see its end."""
    reports: list[Report] = field(default_factory=list)
    """Of this session; those of earlier ones are told again first."""
    ending: Ending | None = None
    """How it ended in this session."""

    @property
    def last(self) -> Report | None:
        """The furthest that is known of it."""
        known = [*self.reports[-1:], *(self.earlier.reports[-1:] if self.earlier else ()), self.heard]
        return max(filter(None, known), key=lambda report: report.epoch, default=None)

    @property
    def decided(self) -> bool:
        """It was stopped in an earlier session, which stands."""
        return self.earlier is not None and self.earlier.status == "pruned"


class Winner(NamedTuple):
    """The best configuration of a study."""

    candidate: Candidate
    value: float
    """Mean over seeds of the best val/top1."""
    finished: bool
    """Whether it was trained to its end; where none was, the best of those that were stopped wins."""


class Tried:
    """A search as it stands on disk, of which the log is read once.

    Args:
        plan: as the file has it, without what its search has led to.
        layout: where the log lies, and the trials.
    """

    def __init__(self, plan: Plan, layout: Layout) -> None:
        self._plan, self._layout = plan, layout
        self._lines = Log(layout, plan.info.key).read() if plan.studies else []
        self.standings = list(_recalled(plan, self._lines))
        """The configurations that earlier sessions have begun, in their order."""

    @cached_property
    def over(self) -> set[Study]:
        """The studies that have come to their end under the rules that the file has now."""
        wanted = rules(self._plan.spec.search)
        marks = [line for line in self._lines if isinstance(line, Over) and line.rules == wanted]
        ended = {title for mark in marks for title in mark.studies}
        open_ = {s.candidate.study.title for s in self.standings if not _is_settled(s, self._layout)}
        return {study for study in self._plan.studies if study.title in ended - open_}

    @property
    def is_left(self) -> bool:
        """Whether there is something to search."""
        return not set(ready(self._plan, self._layout)) <= self.over

    @property
    def open(self) -> list[Candidate]:
        """The configurations that have begun and are left to train."""
        return [s.candidate for s in self.standings if not _is_settled(s, self._layout)]

    @property
    def new(self) -> int:
        """How many more configurations the search may begin, at most: hours and targets are not foreseen."""
        spec, begun = self._plan.spec, [s for s in self.standings if s.candidate.study not in self.over]
        new = sum(configurations(spec.search, study) for study in self._plan.studies if study not in self.over)
        budget = spec.search.budget
        if budget is not None and budget.trials is not None:
            spent = sum(len(standing.candidate.planned) for standing in self.standings)
            new = min(new, len(begun) + math.ceil((budget.trials - spent) / len(spec.seeds)))
        return max(new - len(begun), 0)

    @property
    def to_come(self) -> ToCome:
        """The trials that are left of the search and after it, at most."""
        spec = self._plan.spec
        teachers = {cast.teacher.trial.key for cast in self._plan.casts}
        final = spec.search.final
        finals = len(teachers) + len(self._plan.studies) * final.seeds if final and self._plan.studies else 0
        return ToCome((self.new + len(self.open)) * len(spec.seeds), finals)

    @cached_property
    def final(self) -> Plan | None:
        """What is trained after it: the winners of studies that are over; None where there are none, or no wish."""
        if self._plan.spec.search.final is None:
            return None
        found = winners((s for s in self.standings if s.candidate.study in self.over), self._layout)
        ordered = {study: found[study].candidate.values for study in self._plan.studies if study in found}
        return self._grown.final(ordered) if ordered else None

    @cached_property
    def whole(self) -> Plan:
        """The plan with all that its search has led to so far; as it is where nothing is searched."""
        if not self._plan.studies:
            return self._plan
        plan, last = self._grown, self.final
        tried = tuple(item for standing in self.standings for item in standing.candidate.planned)
        if last is None:
            return plan._replace(students=tried)
        teachers, students = (*plan.teachers, *last.teachers), (*tried, *last.students)
        return plan._replace(info=last.info, teachers=teachers, students=students)

    @property
    def pruned(self) -> dict[str, str]:
        """Trials that the search has stopped → why."""
        return {key: reason for standing in self.standings for key, reason in self._stopped(standing)}

    @cached_property
    def _grown(self) -> Plan:
        """The plan with the labels of what was tried."""
        return self._plan._replace(info=grown(self._plan, (standing.candidate for standing in self.standings)))

    def _stopped(self, standing: Standing) -> Iterator[tuple[str, str]]:
        """Trials of a configuration that are not to be trained any further → why."""
        decided = standing.earlier.reason if standing.decided and standing.earlier else ""
        reason = decided or broken(standing.candidate, self._layout)
        return ((key, reason) for key in keys_of(standing.candidate) if reason and not self._layout.trial(key).done)


def ready(plan: Plan, layout: Layout) -> tuple[Study, ...]:
    """The studies whose teacher is there."""
    teachers = {cast.title: cast.teacher.trial for cast in plan.casts}
    return tuple(study for study in plan.studies if is_sound(teachers[study.pair], layout))


def winners(standings: Iterable[Standing], layout: Layout) -> dict[Study, Winner]:
    """The best configuration of each study, by the mean over seeds of the best val/top1; of equals the first.

    Args:
        standings: in the order in which they were tried.
    """
    found: dict[Study, Winner] = {}
    for standing in standings:
        study, rival = standing.candidate.study, _judged(standing, layout)
        if rival is not None:
            best = found.setdefault(study, rival)
            if (rival.finished, rival.value) > (best.finished, best.value):
                found[study] = rival
    return found


def grown(plan: Plan, candidates: Iterable[Candidate]) -> SweepInfo:
    """The sweep with the labels of what was tried so far."""
    return plan.info.with_labels(item.label for candidate in candidates for item in candidate.planned)


def rules(search: Search) -> str:
    """Digest of a search."""
    return digest(search.model_dump(mode="json"))


def identity(title: str, number: int) -> str:
    """What a configuration is called between driver and workers."""
    return f"{title} #{number}"


def id_of(candidate: Candidate) -> str:
    """What a configuration is called between driver and workers."""
    return identity(candidate.study.title, candidate.number)


def trials_of(candidate: Candidate) -> list[Trial]:
    """A configuration's trials, one a seed."""
    return [planned.trial for planned in candidate.planned]


def keys_of(candidate: Candidate) -> set[str]:
    """The keys of a configuration's trials."""
    return {trial.key for trial in trials_of(candidate)}


def broken(candidate: Candidate, layout: Layout) -> str:
    """Why a configuration cannot have all its seeds any more, as the others of them are told; empty where it can."""
    results = (result_of(trial, layout) for trial in trials_of(candidate))
    if any(result is not None and result.status == "diverged" for result in results):
        return without("diverged")
    return without("failed") if has_failed(candidate, layout) else ""


def has_failed(candidate: Candidate, layout: Layout) -> bool:
    """Whether one of its trials failed in every attempt."""
    return any(layout.trial(key).failed.exists() for key in keys_of(candidate))


def without(status: str) -> str:
    """Why a trial is stopped for another seed's end."""
    return f"stopped: another seed of its configuration {status}"


def _recalled(plan: Plan, lines: Iterable[Begun | Ending | Over]) -> Iterable[Standing]:
    """The configurations that a log tells of, in its order."""
    studies = {study.title: study for study in plan.studies}
    found: dict[str, Standing] = {}
    for line in lines:
        if isinstance(line, Begun) and line.study in studies:
            candidate = plan.candidate(studies[line.study], line.number, line.values)
            found.setdefault(id_of(candidate), Standing(candidate))
        elif isinstance(line, Ending) and (standing := found.get(identity(line.study, line.number))):
            standing.earlier = line
    return found.values()


def _judged(standing: Standing, layout: Layout) -> Winner | None:
    """A configuration as it may win; None for one of which nothing can be said."""
    results = [result_of(trial, layout) for trial in trials_of(standing.candidate)]
    best = [r.metrics[names.BEST_VAL_TOP1] for r in results if r is not None and r.status == "finished"]
    if len(best) == len(results):
        return Winner(standing.candidate, round(fmean(best), 9), True)  # without the rounding of floats: it breaks ties
    ending = standing.ending or standing.earlier
    if ending is None or ending.status != "pruned" or not ending.reports:
        return None
    return Winner(standing.candidate, ending.reports[-1].best, False)


def _is_settled(standing: Standing, layout: Layout) -> bool:
    """Whether nothing is left to be trained of a configuration."""
    candidate = standing.candidate
    done = all(layout.trial(key).done for key in keys_of(candidate))
    return done or standing.decided or bool(broken(candidate, layout))
