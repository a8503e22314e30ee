"""The MLflow sink: one parent run per sweep, one run per trial, one writer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

from mlflow.entities import RunTag

from otkd.core import names
from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, SweepInfo, TrialResult
from otkd.core.trial import Trial
from otkd.track.runs import ENDED, TrialRuns
from otkd.track.store import TAG_BEGUN, answers, connect, search, shown, tagged
from otkd.track.writer import Interrupted, Writer, started

logger = logging.getLogger("otkd.track")

NOTE, NOTE_LIMIT = "mlflow.note.content", 8000


class MlflowSink:
    """Logs one sweep to MLflow.

    `start`, `epoch` and `finish` return at once: a thread of its own writes, and keeps what it cannot write yet.
    Whatever was logged before, by this sink or by one that was killed, is not logged again.

    Args:
        info: the sweep; a sweep of this key and name that the store has already is continued.
        layout: where runs lie.
        pause: seconds before a failed write is tried again; doubles up to 30.

    Raises:
        TrackingError: the store does not answer.
    """

    def __init__(self, info: SweepInfo, layout: Layout, *, pause: float = 1.0) -> None:
        self.info = info
        self.store = connect(layout)
        with self._refusals():
            self.run_id = self._parent()
            self._describe()
        self._open: set[str] = set()
        """Trials that have started and not ended."""
        self._closed = self._reported = False
        runs = TrialRuns(self.store, info, self.run_id, layout)
        self._writer = Writer(runs.write, lambda: answers(self.store), pause)
        self._writer.start()

    def start(self, trial: Trial) -> None:
        """A trial begins, or goes on."""
        self._open.add(trial.key)
        self._writer.put(started(trial))

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""
        self._writer.put(record)

    def finish(self, result: TrialResult) -> None:
        """A trial has ended; epochs which the store lacks are taken from the result."""
        self._open.discard(result.key)
        self._writer.put(result)

    def flush(self, timeout: float = 60.0) -> bool:
        """Wait until everything is in the store; False when it is not after `timeout` seconds."""
        return self._writer.flush(timeout)

    @property
    def pending(self) -> set[str]:
        """Trials with records that are not in the store yet."""
        return self._writer.pending()

    def finished(self) -> set[str]:
        """Keys of the trials, of any sweep, that the store has as finished or diverged."""
        with self._refusals():
            runs = [run for status in ENDED for run in search(self.store, tagged(names.TAG_STATUS, status))]
        return {run.data.tags[names.TAG_KEY] for run in runs if run.info.status != "RUNNING"}

    def close(self, timeout: float = 60.0) -> None:
        """Write what is left, for at most `timeout` seconds, and end the parent run.

        The parent run ends FINISHED when it has its report or all its trials, KILLED when the sweep is to go on.

        Raises:
            TrackingError: some records could not be logged; it says how many, why, and how they get there.
        """
        if self._closed:
            return
        self._closed = True
        for key in self._open:
            self._writer.put(Interrupted(key))
        self._writer.stop(timeout)
        losses = self._losses()
        if losses:
            raise TrackingError(losses)
        if self._reported:
            return
        with self._refusals():
            complete = {label.key for label in self.info.labels} <= self.finished()
            self.store.client.set_terminated(self.run_id, "FINISHED" if complete else "KILLED")

    def attach_report(self, folder: Path, table_markdown: str) -> None:
        """Keep a report with the sweep, whose run ends: the files as artifact `report`, the main table in its note.

        Raises:
            TrackingError: the store refuses or is away.
        """
        with self._refusals():
            self.store.client.log_artifacts(self.run_id, str(folder), names.REPORT_ARTIFACT)
            self.store.client.set_tag(self.run_id, NOTE, note(self.info, table_markdown))
            self.store.client.set_terminated(self.run_id, "FINISHED")
        self._reported = True

    def _parent(self) -> str:
        """The sweep's run: the one that is there, set running again, or a new one."""
        client = self.store.client
        mine = " and ".join([tagged(names.TAG_KIND, "sweep"), tagged(names.TAG_SWEEP_KEY, self.info.key)])
        found = [run for run in search(self.store, mine) if run.data.tags[names.TAG_SWEEP] == self.info.name]
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        return client.create_run(self.store.experiment, tags=self._tags(), run_name=self.info.name).info.run_id

    def _tags(self) -> dict[str, str]:
        tags = {
            names.TAG_KIND: "sweep",
            names.TAG_SWEEP: self.info.name,
            names.TAG_SWEEP_KEY: self.info.key,
            names.TAG_PROFILE: self.info.profile,
            names.TAG_DATA: self.info.dataset,
            NOTE: note(self.info, "")[:NOTE_LIMIT],
            "mlflow.source.name": "otkd",
        }
        return {name: value for name, value in tags.items() if value}

    def _describe(self) -> None:
        client = self.store.client
        client.log_text(self.run_id, self.info.model_dump_json(indent=1), names.PLAN_ARTIFACT)
        client.log_text(self.run_id, self.info.yaml, names.YAML_ARTIFACT)
        client.log_batch(self.run_id, tags=[RunTag(TAG_BEGUN, f"{time():.3f}")])

    def _losses(self) -> str:
        """What could not be logged, for a person; empty when all was."""
        lines = []
        pending = self.pending
        if pending:
            count = "1 trial's records" if len(pending) == 1 else f"{len(pending)} trials' records"
            lines.append(
                f"{shown(self.store.uri)} does not answer. {count} could not be logged; results are kept in "
                f"runs/trials/*/result.json and will be logged by the next run of the same command."
            )
        for key, problem in self._writer.problems.items():
            title = next((label.title for label in self.info.labels if label.key == key), key)
            lines.append(f"{title} ({key}) could not be logged: {problem[:500]}")
        return "\n".join(lines)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise TrackingError(f"the tracking store {shown(self.store.uri)} refuses: {lines[0][:300]}") from error


def note(info: SweepInfo, table: str) -> str:
    """The text that MLflow shows on a sweep's page, within MLflow's limit: whole lines are left out, never parts."""
    notes = "\n".join(f"- {line}" for line in info.notes)
    text = "\n\n".join(part for part in (f"**{info.question}**", table.strip(), notes) if part)
    if len(text) <= NOTE_LIMIT:
        return text
    rest = f"\n\n… The whole table is in the artifact `{names.REPORT_ARTIFACT}`."
    return text[: NOTE_LIMIT - len(rest)].rpartition("\n")[0] + rest
