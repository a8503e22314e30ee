"""Trials as MLflow runs: one run per trial key, and every step may be repeated at will.

A trial that diverged or failed ends with MLflow's status FAILED, so that no list of finished runs holds it; the tag
`otkd.status` says which of the two it was, and `otkd.reason` why. A trial that a search stopped early ends FINISHED,
with `pruned` in the tag. One cut short by the end of its driver has the status KILLED until a sweep goes on with it.
One that diverged and is trained anew gets a new run, and the old one loses its key: no curve is of two trainings.

What a trial says is written in two steps: figures (metrics, parameters, tags), in as few calls as MLflow allows; then,
when no figures of any trial wait any more, the files, and the end of the run. A driver that is killed between the two
leaves the run RUNNING, which tells the next one to do the second step again: tags of a run count once it has ended.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import time

from mlflow.entities import Param, Run, RunTag
from pydantic import ValidationError

from otkd.core import names
from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.core.records import ENDED, EpochRecord, Label, SweepInfo, TrialResult
from otkd.core.trial import Trial
from otkd.track.entities import (
    NAME_LIMIT,
    OF_A_KIND,
    Load,
    closing_tags,
    epoch_load,
    figures_load,
    loads,
    marker,
    millis,
    settings,
)
from otkd.track.events import SWEEP, Described, Event, Interrupted, Opened, Started, Written
from otkd.track.extras import attach, note_of
from otkd.track.found import SETTLED, Found, anothers, as_found, owner
from otkd.track.notes import NOTE
from otkd.track.recall import Recall
from otkd.track.store import Store, own, repository, search, tagged


@dataclass
class TrialRun:
    """What is known of a run that this process writes to."""

    id: str
    place: str = ""
    """Address of its files."""
    ended: bool = False
    searched: bool = False
    """It has ended with the figures of a search's candidate."""
    fresh: bool = True
    """Made by this process, so that nothing is in it which this process did not write."""
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    epochs: dict[str, set[int]] = field(default_factory=dict)
    """Metric → steps that the store has of it."""


class TrialRuns:
    """Writes what trials say into their runs.

    Args:
        parent: run id of the sweep.
        found: runs that the store has of trials, of this sweep and others.
    """

    def __init__(self, store: Store, info: SweepInfo, parent: str, layout: Layout, found: Mapping[str, Found]) -> None:
        self.store, self.parent, self.layout = store, parent, layout
        self.owner = owner(layout)
        self.recall = Recall(layout, info.name)
        self._earlier = self.recall.journal.trials()
        """Trials of which there were epochs before this process."""
        self._found = dict(found)
        self._runs: dict[str, TrialRun] = {}
        self._trials: dict[str, Trial] = {}
        self._ending: dict[str, tuple[str, float]] = {}
        """Trial whose run is to be ended → how and when the trial ended."""
        self._without_files: set[str] = set()
        """Runs whose files this process could not write."""
        self._asked: set[str] = set()
        """Trials for which a run was asked for."""
        self.describe(info)

    def describe(self, info: SweepInfo) -> None:
        """Know the trials of a sweep by their labels; may be called from another thread than `write`."""
        self.info = info
        # a trial may be a candidate of the sweep and besides one of those that are compared
        self.labels = {label.key: label for label in sorted(info.labels, key=lambda one: not one.is_candidate)}

    def write(self, events: Sequence[Event]) -> Event | None:
        """Write events of one trial, or of the sweep, in order. Returns what may wait until nothing else does.

        Raises:
            TrackingError: the run's files cannot be written, or epochs cannot be read back.
            Exception: whatever MLflow raises when the store is away.
        """
        if events[0].key == SWEEP:
            self._sweep(events)
            return None
        later: Event | None = None
        for part in parts(events):
            end = part[-1]
            if isinstance(end, Written):
                self._end(end, part)
            else:
                later = self._figures(part, end) or later
        return later

    def _sweep(self, events: Sequence[Event]) -> None:
        if any(isinstance(event, Opened) for event in events):
            self._repair()
            for key in self._earlier:
                self._complete(key)
        described = [event.info for event in events if isinstance(event, Described)]
        if described:
            self.store.client.log_text(self.parent, described[-1].model_dump_json(indent=1), names.PLAN_ARTIFACT)

    def _repair(self) -> None:
        """End runs that say RUNNING though nobody trains them: the lock on `runs/` is ours, and we have begun nothing.

        In a store that others may use as well, only runs of this sweep, begun here, are known to be nobody's.
        """
        for run in search(self.store, "attributes.status = 'RUNNING'"):
            tags = run.data.tags
            mine = (tags.get(names.TAG_SWEEP_KEY), tags.get(names.TAG_SWEEP)) == (self.info.key, self.info.name)
            ours = (mine or own(self.store, self.layout)) and not anothers(run, self.store, self.layout)
            if names.TAG_KIND in tags and run.info.run_id != self.parent and ours:
                last_seen = self._last_seen(tags.get(names.TAG_KEY, ""))
                self._cut_short(run.info.run_id, last_seen, tags.get(names.TAG_STATUS, ""))

    def _last_seen(self, key: str) -> float | None:
        return max((record.time for record in self.recall.journal.epochs(key)), default=None)

    def _complete(self, key: str) -> None:
        """Write epochs of an unfinished trial that the journal has and its run lacks; the state of the run stays."""
        found = self._found.get(key) or self._half_made(key)
        if key not in self.labels or self.layout.trial(key).done or (found and found.state in SETTLED):
            return
        records = self.recall.journal.epochs(key)
        if not records:  # its lines are damaged
            return
        run = _opened(self.store.client.get_run(found.id)) if found else self._create(key, records[0].time, {})
        self._log(run, self._new(run, records))
        if key not in self._found:
            self._cut_short(run.id, records[-1].time)
            self._found[key] = Found(run.id, "")

    def _figures(self, part: Sequence[Event], end: Event) -> Event | None:
        """Write a trial's parameters, epochs and results as far as its run lacks them."""
        key = end.key
        self._trials |= {event.key: event.trial for event in part if isinstance(event, Started)}
        if isinstance(end, TrialResult):
            return self._finish(part, end)
        if isinstance(end, Interrupted) and len(part) == 1 and key in self._ending:
            return None  # it has ended, and only its files are missing
        if isinstance(end, Started) and self.layout.trial(key).done:
            return None  # its result, which is about to be told, has everything, and says when it began
        run = self._run(key, began(part[0]), {})
        if not run.ended:
            self._log(run, [*self._params(run, key), *self._new(run, self.recall.records(part))])
        if isinstance(end, Interrupted) and not run.ended:
            self._cut_short(run.id)
            self._forget(run, key, "")
        return None

    def _finish(self, part: Sequence[Event], result: TrialResult) -> Written | None:
        key = result.key
        whole = self.recall.whole(part, result)
        tags = closing_tags(whole) | self._note(whole)
        run = self._run(key, min(began(part[0]), result.started), tags)
        if run.ended and self.lacks_figures(key, run.searched):
            run = self._runs[key] = self._revived(run.id)
        if run.ended:  # of the second step it may still lack something
            return Written(key, whole, run.id, run.place) if key in self._ending else None
        records = [*(event for event in part if isinstance(event, EpochRecord)), *whole.epochs]
        new = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        pieces = [*self._params(run, key), *self._new(run, records), figures_load(whole, self.labels.get(key))]
        self._log(run, [*pieces, Load(tags=[RunTag(name, value) for name, value in new.items()])])
        self._forget(run, key, result.status)
        self._ending[key] = (result.status, result.ended)
        return Written(key, whole, run.id, run.place)

    def _note(self, result: TrialResult) -> dict[str, str]:
        trial = self._trial(result.key)
        note = trial and note_of(self.store, trial, result, self.labels.get(result.key), self.parent)
        return {NOTE: note} if note else {}

    def _end(self, written: Written, part: Sequence[Event]) -> None:
        """Write a trial's files and end its run, unless somebody has gone on with it since."""
        key, result = written.key, self.recall.whole(part, written.result)
        if self._ending.get(key) != (result.status, result.ended):
            return
        try:
            with self._files():
                self._keep(written, result)
        except TrackingError:
            self._without_files.add(written.run_id)
            self.store.client.set_tag(written.run_id, names.TAG_FILES, "missing")
            self._terminate(written.run_id, result)
            raise
        if written.run_id in self._without_files:
            self.store.client.set_tag(written.run_id, names.TAG_FILES, "")
        self._terminate(written.run_id, result)
        self._ending.pop(key)
        self._trials.pop(key, None)

    def _terminate(self, run_id: str, result: TrialResult) -> None:
        status = "FINISHED" if result.status in ("finished", "pruned") else "FAILED"
        self.store.client.set_terminated(run_id, status, end_time=millis(result.ended))

    def _keep(self, written: Written, result: TrialResult) -> None:
        """A run's files; the result's comes first: all else can be made of it."""
        key = written.key
        files, trial = repository(self.store, written.place), self._trial(key)
        with tempfile.TemporaryDirectory(prefix="otkd-result-") as folder:
            file = Path(folder, "result.json")
            file.write_text(result.model_dump_json(indent=1), encoding="utf-8")
            files.log_artifact(str(file))
        if trial is not None:
            label, folder_of = self.labels.get(key), self.layout.trial(key)
            attach(self.store, written.run_id, files, trial, result, label, folder_of)

    def _forget(self, run: TrialRun, key: str, state: str) -> None:
        """Keep of a run that has ended only this; one that may be gone on with is looked at again."""
        if state in ENDED:
            self._runs[key] = TrialRun(run.id, run.place, ended=True, searched=self.is_candidate(key))
        else:
            self._runs.pop(key, None)
            self._found[key] = Found(run.id, state, state)

    def _log(self, run: TrialRun, pieces: Iterable[Load]) -> None:
        for load in loads(pieces):
            self.store.client.log_batch(run.id, metrics=load.metrics, params=load.params, tags=load.tags)
            run.params |= {param.key for param in load.params}
            for name, epoch in load.marks:
                run.epochs.setdefault(name, set()).add(epoch)

    def _run(self, key: str, started: float, closing: Mapping[str, str]) -> TrialRun:
        """The trial's run, set running unless it has ended; a new one when there is none.

        Args:
            closing: tags of a trial that has ended already; a new run gets them at once.
        """
        if key not in self._runs:
            found = self._found.get(key) or self._half_made(key)
            self._ending.pop(key, None)
            if found and self.set_aside(key, found):
                self._supersede(key, found)
                found = None
            self._runs[key] = self._reopen(found) if found else self._create(key, started, closing)
        return self._runs[key]

    def _supersede(self, key: str, found: Found) -> None:
        """Leave the run of a training that diverged as it is, for people to read: the trial gets a new one."""
        self.store.client.log_batch(found.id, tags=[RunTag(names.TAG_SUPERSEDED, key), RunTag(names.TAG_KEY, "")])
        self._found.pop(key, None)
        self._asked.add(key)  # of the new run nobody may be told either

    def _half_made(self, key: str) -> Found | None:
        """A run that the store made just before it went away, so that nobody was told."""
        if key not in self._asked:
            self._asked.add(key)
            return None
        runs = search(self.store, tagged(names.TAG_KEY, key))
        ours = [run for run in runs if not anothers(run, self.store, self.layout)]
        return as_found(ours[0]) if ours else None

    def _create(self, key: str, started: float, closing: Mapping[str, str]) -> TrialRun:
        label = self.labels.get(key)
        tags = {**self._tags(key, label), **closing}
        title = label.title[:NAME_LIMIT] if label else key
        run = self.store.client.create_run(self.store.experiment, millis(started), tags, run_name=title)
        return TrialRun(run.info.run_id, run.info.artifact_uri, tags=tags)

    def _reopen(self, found: Found) -> TrialRun:
        if found.state in ENDED:
            return TrialRun(found.id, ended=True, searched=found.searched)
        return self._revived(found.id)

    def _revived(self, run_id: str) -> TrialRun:
        run = self.store.client.get_run(run_id)
        self._revive(run)
        return _opened(run)

    def is_candidate(self, key: str) -> bool:
        """Whether the sweep has a trial only as a candidate of its search."""
        return key in self.labels and self.labels[key].is_candidate

    def lacks_figures(self, key: str, searched: bool) -> bool:
        """Whether a trial is to be compared here whose run has the figures of a search's candidate."""
        return searched and key in self.labels and not self.is_candidate(key)

    def set_aside(self, key: str, found: Found) -> bool:
        """Whether a run ended with a divergence after which its trial was, or is to be, trained again."""
        folder = self.layout.trial(key)
        file = folder.set_aside
        if found.said != "diverged" or not file.exists():
            return False
        if not found.ended:  # cut short at its end: of what was set aside, unless that was tried again and has ended
            return not folder.done
        try:
            return found.ended <= millis(TrialResult.model_validate_json(file.read_bytes()).ended)
        except ValidationError:
            return True

    def _revive(self, run: Run) -> None:
        """Set a run running, and take back what its last attempt ended with."""
        for tag in (names.TAG_REASON, names.TAG_FILES):
            if run.data.tags.get(tag):
                self.store.client.set_tag(run.info.run_id, tag, "")
        if run.data.tags.get(names.TAG_OWNER) != self.owner:
            self.store.client.set_tag(run.info.run_id, names.TAG_OWNER, self.owner)
        if run.data.tags.get(names.TAG_STATUS) != "running":
            self.store.client.set_tag(run.info.run_id, names.TAG_STATUS, "running")
        if run.info.status != "RUNNING":
            self.store.client.update_run(run.info.run_id, status="RUNNING")

    def _cut_short(self, run_id: str, ended: float | None = None, said: str = "") -> None:
        """End a run whose trial has not ended; the state comes last, so that half of this is done again.

        Args:
            said: how its tag says that it stands; that it diverged is kept for those who try again.
        """
        if said != "diverged":
            self.store.client.set_tag(run_id, names.TAG_STATUS, "interrupted")
        self.store.client.set_terminated(run_id, "KILLED", end_time=millis(time() if ended is None else ended))

    def _tags(self, key: str, label: Label | None) -> dict[str, str]:
        trial = self._trial(key)
        tags = {
            names.TAG_KEY: key,
            names.TAG_KIND: label.role if label else "student",
            names.TAG_STATUS: "running",
            names.TAG_OWNER: self.owner,
            names.TAG_SWEEP: self.info.name,
            names.TAG_SWEEP_KEY: self.info.key,
            names.TAG_PROFILE: self.info.profile,
            names.TAG_DATA: self.info.dataset,
            names.TAG_COHORT: trial.cohort if trial else "",
            "mlflow.parentRunId": self.parent,
            "mlflow.source.name": "otkd",
        }
        if label is not None:
            tags |= {names.TAG_PAIR: label.pair, names.TAG_METHOD: label.method, names.TAG_SEED: str(label.seed)}
        return {name: value for name, value in tags.items() if value}

    def _params(self, run: TrialRun, key: str) -> Iterator[Load]:
        """What the run lacks of a trial's settings."""
        trial = self._trial(key)
        known = settings(trial) if trial else {}
        params = [Param(name, value) for name, value in known.items() if name not in run.params]
        for i in range(0, len(params), OF_A_KIND):
            yield Load(params=params[i : i + OF_A_KIND])

    def _trial(self, key: str) -> Trial | None:
        """The trial as it was started, or as its folder tells."""
        if key not in self._trials:
            trial = self.recall.trial(key)
            if trial is None:
                return None
            self._trials[key] = trial
        return self._trials[key]

    def _new(self, run: TrialRun, records: Iterable[EpochRecord]) -> list[Load]:
        """Epochs that the run does not have yet; of an epoch that came twice, the first."""
        first: dict[tuple[str, int], EpochRecord] = {}
        for record in records:
            if record.metrics and not self._has(run, record):
                first.setdefault((record.stage, record.epoch), record)
        return [epoch_load(record) for record in first.values()]

    def _has(self, run: TrialRun, record: EpochRecord) -> bool:
        name = marker(record)
        if name not in run.epochs:
            history = [] if run.fresh else self.store.client.get_metric_history(run.id, name)
            run.epochs[name] = {metric.step for metric in history}
        return record.epoch in run.epochs[name]

    @contextmanager
    def _files(self) -> Iterator[None]:
        """Errors of the artifact store, with the way out."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            place = self.store.client.get_experiment(self.store.experiment).artifact_location
            raise TrackingError(
                f"its figures are logged, but its files cannot be written to {place}: {reason}. Let this account write "
                f"there, and run the same command again: nothing is trained again."
            ) from error


def _opened(run: Run) -> TrialRun:
    """A run that somebody else has begun; tags that change while it goes on are taken as unknown."""
    tags = {name: value for name, value in run.data.tags.items() if name not in (names.TAG_STATUS, names.TAG_REASON)}
    return TrialRun(run.info.run_id, run.info.artifact_uri, fresh=False, params=set(run.data.params), tags=tags)


def parts(events: Sequence[Event]) -> Iterator[list[Event]]:
    """A trial's events, cut behind each end that it came to."""
    part: list[Event] = []
    for event in events:
        part.append(event)
        if isinstance(event, TrialResult | Interrupted | Written):
            yield part
            part = []
    if part:
        yield part


def began(event: Event) -> float:
    """When a run began whose first news is this."""
    if isinstance(event, TrialResult):
        return event.started
    return event.time if isinstance(event, Started | EpochRecord) else time()
