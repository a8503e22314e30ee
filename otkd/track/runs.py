"""Trials as MLflow runs: one run per trial key, and every step may be repeated at will.

A trial that diverged or failed ends with MLflow's status FAILED, so that no list of finished runs holds it; the tag
`otkd.status` says which of the two it was, and `otkd.reason` why. A trial cut short by the end of its driver has the
status KILLED until the same sweep goes on with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, Label, SweepInfo, TrialResult
from otkd.core.trial import Trial, digest
from otkd.track.picture import heat_maps
from otkd.track.store import Store, search, tagged
from otkd.track.weights import log_student
from otkd.track.writer import Event, Interrupted, Started

ENDED = ("finished", "diverged")
"""States after which a trial is not run again."""

METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100


@dataclass
class TrialRun:
    """What is known of one trial's run."""

    id: str
    ended: bool = False
    fresh: bool = True
    """Made by this process, so that nothing is in it which this process did not write."""
    params: dict[str, str] = field(default_factory=dict)
    epochs: dict[str, set[int]] = field(default_factory=dict)
    """Metric → steps that the store has of it."""


class TrialRuns:
    """Writes what trials say into their runs.

    Args:
        parent: run id of the sweep.
    """

    def __init__(self, store: Store, info: SweepInfo, parent: str, layout: Layout) -> None:
        self.store, self.info, self.parent, self.layout = store, info, parent, layout
        self.labels = {label.key: label for label in info.labels}
        self.runs: dict[str, TrialRun] = {}
        self.trials: dict[str, Trial] = {}

    def write(self, events: Sequence[Event]) -> None:
        """Write events of one trial: epochs together, everything else alone."""
        first = events[0]
        if isinstance(first, Started):
            self.start(first)
        elif isinstance(first, TrialResult):
            self.finish(first)
        elif isinstance(first, Interrupted):
            self.interrupt(first.key)
        else:
            self.epochs(first.key, [event for event in events if isinstance(event, EpochRecord)])

    def start(self, event: Started) -> None:
        """Make the trial's run, or go on with the one that is there."""
        self.trials[event.key] = event.trial
        run = self._run(event.key, event.time)
        if not run.ended:
            self._params(run, event.trial)

    def epochs(self, key: str, records: Iterable[EpochRecord]) -> None:
        """Write the epochs that the run does not have yet."""
        records = tuple(records)
        if not records:
            return
        run = self._run(key, records[0].time)
        if run.ended:
            return
        new = {(r.stage, r.epoch): r for r in reversed(records) if r.metrics and not self._has(run, r)}
        for batch in batches(list(reversed(new.values()))):
            self.store.client.log_batch(run.id, metrics=[metric for r in batch for metric in metrics_of(r)])
            for record in batch:
                run.epochs[marker(record)].add(record.epoch)

    def finish(self, result: TrialResult) -> None:
        """Write all that the run does not have yet, and end it. A run that has ended stays as it is."""
        run = self._run(result.key, result.started)
        if run.ended:
            return
        trial = self._trial(result.key)
        if trial is not None:
            self._params(run, trial)
            self._dataset(run, trial)
        self.epochs(result.key, result.epochs)
        self._results(run, result)
        if trial is not None and trial.teacher is not None and result.status == "finished":
            self._model(run, trial)
            self._pictures(run, result.key)
        status = "FINISHED" if result.status == "finished" else "FAILED"
        self.store.client.set_terminated(run.id, status, end_time=millis(result.ended))
        run.ended = result.status in ENDED
        if not run.ended:
            del self.runs[result.key]  # a retry opens it again

    def interrupt(self, key: str) -> None:
        """Mark a run that is under way as cut short."""
        run = self._run(key, time())
        if not run.ended:
            self.store.client.set_tag(run.id, names.TAG_STATUS, "interrupted")
            self.store.client.set_terminated(run.id, "KILLED")
            del self.runs[key]  # whoever goes on with it opens it again

    def _run(self, key: str, started: float) -> TrialRun:
        if key not in self.runs:
            found = search(self.store, tagged(names.TAG_KEY, key))
            self.runs[key] = self._reopen(best(found)) if found else self._create(key, started)
        return self.runs[key]

    def _create(self, key: str, started: float) -> TrialRun:
        label = self.labels.get(key)
        run = self.store.client.create_run(
            self.store.experiment, millis(started), self._tags(key, label), run_name=label.title if label else key
        )
        return TrialRun(run.info.run_id)

    def _reopen(self, run: Run) -> TrialRun:
        ended = run.data.tags.get(names.TAG_STATUS) in ENDED and run.info.status in ("FINISHED", "FAILED")
        if not ended:
            self._revive(run)
        return TrialRun(run.info.run_id, ended, fresh=False, params=dict(run.data.params))

    def _revive(self, run: Run) -> None:
        """Set a run running, and take back what its last attempt ended with."""
        if run.data.tags.get(names.TAG_REASON):
            self.store.client.set_tag(run.info.run_id, names.TAG_REASON, "")
        if run.data.tags.get(names.TAG_STATUS) != "running":
            self.store.client.set_tag(run.info.run_id, names.TAG_STATUS, "running")
        if run.info.status != "RUNNING":
            self.store.client.update_run(run.info.run_id, status="RUNNING")

    def _tags(self, key: str, label: Label | None) -> dict[str, str]:
        tags = {
            names.TAG_KEY: key,
            names.TAG_KIND: label.role if label else "student",
            names.TAG_STATUS: "running",
            names.TAG_SWEEP: self.info.name,
            names.TAG_SWEEP_KEY: self.info.key,
            names.TAG_PROFILE: self.info.profile,
            names.TAG_DATA: self.info.dataset,
            "mlflow.parentRunId": self.parent,
            "mlflow.source.name": "otkd",
        }
        if label is not None:
            tags |= {names.TAG_PAIR: label.pair, names.TAG_METHOD: label.method, names.TAG_SEED: str(label.seed)}
        return {name: value for name, value in tags.items() if value}

    def _params(self, run: TrialRun, trial: Trial) -> None:
        params = {safe(path): value for path, value in flat(trial.model_dump(mode="json"))}
        new = [Param(name, value[:6000]) for name, value in params.items() if name not in run.params]
        for i in range(0, len(new), PARAMS_PER_BATCH):
            self.store.client.log_batch(run.id, params=new[i : i + PARAMS_PER_BATCH])
        run.params |= params
        if new:
            self.store.client.set_tag(run.id, names.TAG_COHORT, trial.cohort)

    def _dataset(self, run: TrialRun, trial: Trial) -> None:
        data = trial.data.model_dump(mode="json")
        source = CodeDatasetSource({"otkd": json.dumps(data, sort_keys=True)})
        facts = MetaDataset(source, name=trial.data.name, digest=digest(data)).to_dict()
        context = InputTag("mlflow.data.context", "training")
        self.store.client.log_inputs(run.id, [DatasetInput(Dataset(**facts), [context])])

    def _results(self, run: TrialRun, result: TrialResult) -> None:
        step = max((r.epoch for r in result.epochs if r.stage == "train"), default=0)
        tags = {names.TAG_PROVENANCE + safe(name): value for name, value in result.provenance.items()}
        tags |= {names.TAG_STATUS: result.status, names.TAG_REASON: result.reason}
        tags |= {"mlflow.source.git.commit": result.provenance.get("commit", "")}
        self.store.client.log_text(run.id, result.model_dump_json(indent=1), "result.json")
        self.store.client.log_batch(
            run.id,
            metrics=[Metric(safe(name), value, millis(result.ended), step) for name, value in result.metrics.items()],
            tags=[RunTag(name, value[:8000]) for name, value in tags.items() if value],
        )

    def _model(self, run: TrialRun, trial: Trial) -> None:
        weights = self.layout.trial(trial.key).last
        if weights.exists():
            log_student(self.store, run.id, trial, weights)

    def _pictures(self, run: TrialRun, key: str) -> None:
        file = self.layout.trial(key).snapshots
        if not file.exists():
            return
        text = file.read_text(encoding="utf-8")
        self.store.client.log_text(run.id, text, file.name)
        for name, figure in heat_maps(text, key):
            self.store.client.log_figure(run.id, figure, f"{safe(name).replace('/', '-')}.png")

    def _trial(self, key: str) -> Trial | None:
        """The trial as it was started, or as its folder tells."""
        file = self.layout.trial(key).trial
        if key not in self.trials and file.exists():
            self.trials[key] = Trial.model_validate_json(file.read_text(encoding="utf-8"))
        return self.trials.get(key)

    def _has(self, run: TrialRun, record: EpochRecord) -> bool:
        name = marker(record)
        if name not in run.epochs:
            history = [] if run.fresh else self.store.client.get_metric_history(run.id, name)
            run.epochs[name] = {metric.step for metric in history}
        return record.epoch in run.epochs[name]


def best(runs: Sequence[Run]) -> Run:
    """The run that counts where a trial has several (two drivers at once): an ended one, else the newest."""
    return next((run for run in runs if run.data.tags.get(names.TAG_STATUS) in ENDED), runs[0])


def marker(record: EpochRecord) -> str:
    """The metric whose history tells which epochs a run has: a record is written whole, so any of it will do."""
    return metric_name(record.stage, min(record.metrics))


def metrics_of(record: EpochRecord) -> list[Metric]:
    """A record as MLflow metrics, with the time at which its epoch ended."""
    return [
        Metric(metric_name(record.stage, name), value, millis(record.time), record.epoch)
        for name, value in record.metrics.items()
    ]


def metric_name(stage: str, name: str) -> str:
    """Names of the training proper stay; those of a stage before it get its name in front."""
    return safe(name if stage == "train" else f"{stage}/{name}")


def batches(records: Sequence[EpochRecord]) -> Iterator[list[EpochRecord]]:
    """Records in batches that MLflow takes at once, none of them split."""
    batch: list[EpochRecord] = []
    size = 0
    for record in records:
        if batch and size + len(record.metrics) > METRICS_PER_BATCH:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.metrics)
    if batch:
        yield batch


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as dotted path → text; what is not text is written as JSON."""
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def safe(name: str) -> str:
    """A name with MLflow's alphabet and length."""
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)[:250]


def millis(seconds: float) -> int:
    return int(seconds * 1000)
