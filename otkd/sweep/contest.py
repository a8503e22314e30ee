"""The book of a search: what is tried next, how each configuration stands, when one ends, and who wins.

It reads validation figures alone. Imports neither torch nor ray, so that a sweep's state can be told without them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Literal

from otkd.core.errors import ConfigError
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Trial
from otkd.sweep.drawing import Drawing
from otkd.sweep.journal import HEAD, journal_file
from otkd.sweep.plan import Plan
from otkd.sweep.results import result_of
from otkd.sweep.runner import Listener
from otkd.sweep.search import Candidate, Search, order
from otkd.sweep.searchers import Begun, Ending, Log, Over, Report, proposer, report_of, rounds
from otkd.sweep.tried import (
    Standing,
    Tried,
    grown,
    has_failed,
    id_of,
    identity,
    keys_of,
    rules,
    trials_of,
    without,
)

Status = Literal["finished", "diverged", "failed", "pruned"]


class Contest:
    """A search under way.

    Args:
        plan: what is searched.
        layout: where its log lies, and the trials.
        listener: hears of trials that end here; `plan` of it of new labels.
    """

    def __init__(self, plan: Plan, layout: Layout, listener: Listener) -> None:
        self.plan, self.layout, self.listener = plan, layout, listener
        self.search: Search = plan.spec.search
        self.standings: dict[str, Standing] = {}
        self._log = Log(layout, plan.info.key)
        self._studies = {study.title: study for study in plan.studies}
        self._proposers = {title: proposer(self.search, study) for title, study in self._studies.items()}
        self._drawings = {title: Drawing(self.search, study, plan.candidate) for title, study in self._studies.items()}
        self._busy: dict[str, set[str]] = {}
        """Configuration in training → its trials."""
        self._waiting: list[Candidate] = []
        self._recall()
        # those that have ended first, since others are compared with them; brackets are filled as they were
        bracketed = self.search.scheduler.name == "hyperband"
        self._again = iter(sorted(self.standings.values(), key=lambda s: s.earlier is None and not bracketed))
        orders = {title: order(self.search, study) for title, study in self._studies.items()}
        self._new = rounds(orders)
        self.most = len(self.standings) + sum(map(len, orders.values())) + 1
        """No more configurations than this come."""

    def next(self) -> Candidate | None:
        """The configuration that begins now: those of earlier sessions first, then new ones while rules allow.

        Raises:
            StorageError: it cannot be put down.
        """
        for candidate in self._candidates():
            if self._is_free(candidate):
                self._busy[id_of(candidate)] = keys_of(candidate)
                return candidate
            self._waiting.append(candidate)
        return None

    def put_back(self, id_: str) -> None:
        """A configuration that was to begin could not; it is the next one."""
        self._busy.pop(id_)
        self._waiting.append(self.standings[id_].candidate)

    @property
    def waits(self) -> bool:
        """Whether configurations wait: for others that train the same trials, or for a worker."""
        return bool(self._waiting)

    def _candidates(self) -> Iterator[Candidate]:
        for _ in range(len(self._waiting)):  # who is not asked for now stays
            yield self._waiting.pop(0)
        for standing in self._again:
            if not has_failed(standing.candidate, self.layout):
                yield standing.candidate
            elif standing.earlier is not None:
                self._proposers[standing.earlier.study].tell(standing.earlier.number, standing.earlier)
        while (candidate := self._new_one()) is not None:
            yield candidate

    def _is_free(self, candidate: Candidate) -> bool:
        """Whether none of its trials is in training: methods may meet in one, and it has one checkpoint."""
        return not any(keys_of(candidate) & keys for keys in self._busy.values())

    def _new_one(self) -> Candidate | None:
        while not self._spent:
            title, number = next(self._new, ("", 0))
            if not title:
                return None
            if identity(title, number) in self.standings or self._reached(title):
                continue
            if (candidate := self._propose(title, number)) is not None:
                return candidate
        return None

    def judge(self, id_: str, report: Report) -> str:
        """Take note of how a configuration stands; gives a reason to stop it, or nothing."""
        standing = self.standings[id_]
        standing.reports.append(report)
        if report.epoch >= self.plan.spec.train.epochs:
            return ""
        if standing.decided and standing.earlier and report.epoch >= len(standing.earlier.reports):
            return standing.earlier.reason
        return self._out_of_time(report) or self._on_a_plateau(standing.reports)

    def end(self, id_: str, status: Status, reason: str, records: Mapping[str, Sequence[EpochRecord]]) -> None:
        """A configuration has ended.

        Args:
            records: the epochs of its trials, for those that were stopped.

        Raises:
            StorageError: it cannot be put down.
        """
        standing = self.standings[id_]
        study, number = standing.candidate.study.title, standing.candidate.number
        ending = Ending(study=study, number=number, status=status, reports=tuple(standing.reports), reason=reason)
        trained = all(self.layout.trial(trial.key).done for trial in trials_of(standing.candidate))
        standing.ending = ending = _lasting(standing.earlier, ending, trained)
        self._busy.pop(id_, None)
        self._proposers[study].tell(number, ending)
        if status != "failed" and standing.earlier is not None and _same(standing.earlier, ending):
            return  # as an earlier session has told; what fails again was begun again, with all of its seeds
        for trial in trials_of(standing.candidate) if status != "finished" else ():
            folder = self.layout.trial(trial.key)
            if not (folder.done or folder.failed.exists()):
                why = reason if status == "pruned" else without(status)
                self.listener.finish(_pruned(trial, why, records.get(trial.key, ())))
        self._log.append(ending)

    def conclude(self) -> None:
        """Put down that nothing more is to begin."""
        self._log.append(Over(rules=rules(self.search), studies=tuple(self._studies)))

    @property
    def _spent(self) -> bool:
        """Whether the budget is used up."""
        budget = self.search.budget
        if budget is None:
            return False
        begun = sum(len(standing.candidate.planned) for standing in self.standings.values())
        hours = sum(last.hours for standing in self.standings.values() if (last := standing.last))
        out_of_trials = budget.trials is not None and begun >= budget.trials
        return out_of_trials or (budget.hours is not None and hours >= budget.hours)

    def _reached(self, title: str) -> bool:
        """Whether a configuration of a study has the target."""
        target = self.search.stop.target
        own = [standing for standing in self.standings.values() if standing.candidate.study.title == title]
        return target is not None and any(last.best >= target for standing in own if (last := standing.last))

    def _out_of_time(self, report: Report) -> str:
        most = self.search.stop.hours
        if most is None or report.hours < most:
            return ""
        return f"stopped after epoch {report.epoch}: it has had {most:g} hours (search.stop.hours)"

    def _on_a_plateau(self, reports: Sequence[Report]) -> str:
        plateau = self.search.stop.plateau
        if plateau is None:
            return ""
        gained = reports[0]
        for report in reports:
            if report.value > gained.value and report.value >= gained.value + plateau.delta:
                gained = report
        epoch = reports[-1].epoch
        if epoch - gained.epoch < plateau.epochs:
            return ""
        return f"stopped after epoch {epoch}: no gain since epoch {gained.epoch} (search.stop.plateau)"

    def _recall(self) -> None:
        """Learn from the log what was tried before."""
        for standing in Tried(self.plan, self.layout).standings:
            candidate = standing.candidate
            self.standings[identity(candidate.study.title, candidate.number)] = standing
            self._drawings[candidate.study.title].recall(candidate)
            self._proposers[candidate.study.title].recall(candidate.number, candidate.values)
        if self.standings:
            self._recall_open()
            self._present()

    def _recall_open(self) -> None:
        """Learn how those stood that have not ended: budgets and targets count them before they train on."""
        left = [standing for standing in self.standings.values() if standing.earlier is None]
        wanted = {key for standing in left for key in keys_of(standing.candidate)}
        epochs = journalled(journal_file(self.layout, self.plan.info.name), wanted) if wanted else {}
        for standing in left:
            results = {trial.key: result_of(trial, self.layout) for trial in trials_of(standing.candidate)}
            standing.heard = report_of(
                [result.epochs if result is not None else epochs.get(key, ()) for key, result in results.items()]
            )

    def _propose(self, title: str, number: int) -> Candidate | None:
        """A new configuration, put down; None when it cannot be, or all were tried."""
        proposed = self._proposers[title].propose(number)
        candidate: Candidate | None
        try:
            candidate = self._drawings[title].take(number, proposed)
        except ConfigError as error:
            self.listener.note(f"{identity(title, number)} is left out: {error.problems[0]}")
            candidate = None
        if candidate is None or candidate.values != proposed:
            self._proposers[title].tell(number, None)
        if candidate is None:
            return None
        if candidate.values != proposed:
            self._proposers[title].recall(number, candidate.values)
        self._log.append(Begun(study=title, number=number, values=candidate.values))
        self.standings[identity(title, number)] = Standing(candidate)
        self._present()
        return candidate

    def _present(self) -> None:
        """Tell the listener what the sweep consists of by now."""
        if (present := getattr(self.listener, "plan", None)) is not None:
            present(grown(self.plan, [standing.candidate for standing in self.standings.values()]))


def journalled(path: Path, keys: Set[str]) -> dict[str, list[EpochRecord]]:
    """The epochs of some trials in a sweep's journal, each once."""
    found: dict[str, dict[tuple[str, int], EpochRecord]] = {}
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            head = HEAD.match(line)
            if head is not None and head[1] == b"epoch" and head[2].decode() in keys and line.endswith(b"\n"):
                with suppress(ValueError):  # a damaged line
                    fields = json.loads(line)
                    del fields["event"]
                    record = EpochRecord.model_validate(fields)
                    found.setdefault(record.key, {})[record.stage, record.epoch] = record
    return {key: list(records.values()) for key, records in found.items()}


class Witness:
    """A listener that passes everything on, and keeps the epochs of trials that may yet be stopped."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._epochs: dict[str, dict[tuple[str, int], EpochRecord]] = {}

    def start(self, trial: Trial) -> None:
        self._listener.start(trial)

    def epoch(self, record: EpochRecord) -> None:
        self.remember(record)
        self._listener.epoch(record)

    def finish(self, result: TrialResult) -> None:
        self._listener.finish(result)

    def note(self, text: str) -> None:
        self._listener.note(text)

    def close(self) -> None:
        self._listener.close()

    def remember(self, record: EpochRecord) -> None:
        """Keep an epoch of an earlier session."""
        self._epochs.setdefault(record.key, {})[record.stage, record.epoch] = record

    def take(self, keys: Iterable[str]) -> dict[str, list[EpochRecord]]:
        """What was kept of some trials, which have ended."""
        return {key: list(self._epochs.pop(key, {}).values()) for key in keys}


def _pruned(trial: Trial, reason: str, records: Sequence[EpochRecord]) -> TrialResult:
    times = [record.time for record in records] or [time.time()]
    return TrialResult(
        key=trial.key, status="pruned", epochs=tuple(records), started=min(times), ended=max(times), reason=reason
    )


def _lasting(earlier: Ending | None, ending: Ending, trained: bool) -> Ending:
    """How a configuration has ended: one that was trained to its end, or stopped, does not lose epochs again.

    Args:
        trained: whether all of its trials have their results; what was lost of one that had finished was trained anew.
    """
    if earlier is None or earlier.status not in ("finished", "pruned") or len(ending.reports) >= len(earlier.reports):
        return ending
    if trained or earlier.status == "pruned":
        return earlier
    return ending.model_copy(update={"reports": earlier.reports})


def _same(left: Ending, right: Ending) -> bool:
    return (left.status, left.reason, len(left.reports)) == (right.status, right.reason, len(right.reports))
