"""The MLflow sink: one parent run per sweep, one run per trial, one writer."""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from time import monotonic, time

from mlflow.entities import RunTag
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from otkd.core import names
from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.core.records import ENDED, EpochRecord, SweepInfo, TrialResult
from otkd.core.trial import Trial
from otkd.track.events import ROOM, SWEEP, Described, Interrupted, Opened, started
from otkd.track.found import SETTLED, found_in
from otkd.track.notes import NOTE, NOTE_LIMIT
from otkd.track.runs import TrialRuns
from otkd.track.store import TAG_BEGUN, answers, begun, connect, refused, repository, search, shown, tagged
from otkd.track.writer import Writer

logger = logging.getLogger("otkd.track")

TABLES = "mlflow.loggedArtifacts"
"""Tag in which `mlflow.log_table` lists the tables of a run."""
DESCRIBE_S = 5.0
"""Seconds between two descriptions of a sweep that grows."""


class MlflowSink:
    """Logs one sweep to MLflow.

    `start`, `epoch` and `finish` return at once: a thread of its own writes, and keeps what it cannot write yet. Where
    that is too much for memory, epochs are read back from the journal (`runs/records/<name>.jsonl`), which has to hear
    everything first, or from the trial's `result.json`.
    Whatever was logged before, by this sink or by one that was killed, is not logged again. What such a one has left
    behind is put right first: its runs end as interrupted, with all the epochs that the journal has of them.

    Args:
        info: the sweep; a sweep of this key and name that the store has already is continued.
        layout: where runs lie; its lock is ours, so nobody else trains there.
        pause: seconds before a failed write is tried again; doubles up to 30.
        room: metric values that may wait in memory.

    Raises:
        TrackingError: the store does not answer.
    """

    def __init__(self, info: SweepInfo, layout: Layout, *, pause: float = 1.0, room: int = ROOM) -> None:
        self.info, self._layout = info, layout
        self.store = connect(layout)
        with self._refusals():
            found = found_in(self.store, layout)
            self.run_id = self._parent()
            self._describe()
        self._described = monotonic()
        self._news = False
        """The sweep has trials of which the store has not been told."""
        self._open: set[str] = set()
        """Trials that have started and not ended."""
        self._ended: dict[str, str] = {}
        """Trial → how it has ended, of those that have."""
        self._stored = dict(found)
        """Trial → its run as it was found, of those that have not begun again."""
        self._searched = {key: one.searched for key, one in found.items()}
        """Trial → whether it ended as a candidate of a search."""
        self._closed = self._reported = False
        self._runs = TrialRuns(self.store, info, self.run_id, layout, found)
        self._writer = Writer(self._runs.write, lambda: answers(self.store), self._runs.recall.has, pause, room)
        self._writer.put(Opened())
        self._writer.start()

    def describe(self, info: SweepInfo) -> None:
        """The sweep has new trials. The store is told every few seconds, and of the last ones by `flush` or `close`."""
        self.info, self._news = info, True
        self._runs.describe(info)
        if monotonic() - self._described > DESCRIBE_S:
            self._tell()

    def start(self, trial: Trial) -> None:
        """A trial begins, or goes on."""
        self._open.add(trial.key)
        self._ended.pop(trial.key, None)
        self._stored.pop(trial.key, None)
        self._writer.put(started(trial))

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""
        self._writer.put(record)

    def finish(self, result: TrialResult) -> None:
        """A trial has ended; epochs which the store lacks are taken from the result."""
        self._open.discard(result.key)
        self._ended[result.key] = result.status
        self._searched[result.key] = self._runs.is_candidate(result.key)
        self._writer.put(result)

    def flush(self, timeout: float = 60.0) -> bool:
        """Wait until everything is in the store; False when nothing could be written for `timeout` seconds."""
        self._tell()
        return self._writer.flush(timeout)

    @property
    def pending(self) -> set[str]:
        """Trials with records that are not in the store yet."""
        return self._writer.pending()

    def finished(self) -> set[str]:
        """Keys of the trials, of any sweep, that the store has as finished or diverged, or will have from this sink.

        Not of those that ended as candidates of a search and are now to be compared: their results are to come again.
        """
        lacking = {key for key, searched in self._searched.items() if self._runs.lacks_figures(key, searched)}
        return (self._told(ENDED) | self._kept(ENDED)) - lacking

    def close(self, timeout: float = 60.0) -> None:
        """Write what is left, for at most `timeout` seconds, and end the parent run.

        The parent run ends FINISHED when it has its report or all its trials, KILLED when the sweep is to go on.

        Raises:
            TrackingError: some records could not be logged; it says how many, why, and how they get there.
        """
        if self._closed:
            return
        self._closed = True
        self._tell()
        for key in self._open | self._writer.problems.keys():
            self._writer.put(Interrupted(key))
        self._writer.stop(timeout)
        losses = self._losses()
        if losses:
            with suppress(TrackingError):  # the losses are what is to be told
                if answers(self.store):
                    self._end("KILLED")
            raise TrackingError(losses)
        self._end("FINISHED" if self._complete() else "KILLED")

    def _end(self, status: str) -> None:
        """End the parent run, unless its report has."""
        if not self._reported:
            with self._refusals():
                self.store.client.set_terminated(self.run_id, status)

    def attach_report(self, folder: Path, table_markdown: str) -> None:
        """Keep a report with the sweep, whose run ends: the files as artifact `report`, the main table in its note.

        Raises:
            TrackingError: the store refuses or is away.
        """
        with self._refusals():
            self.store.client.log_artifacts(self.run_id, str(folder), names.REPORT_ARTIFACT)
            self._drop_stale(folder)
            self.store.client.set_tag(self.run_id, TABLES, listed(path.name for path in folder.glob("tables/*.json")))
            self.store.client.set_tag(self.run_id, NOTE, note(self.info, table_markdown))
            self.store.client.set_terminated(self.run_id, "FINISHED")
        self._reported = True

    def _drop_stale(self, folder: Path) -> None:
        """Delete files of an earlier report that this one does not have, where the store can."""
        files = repository(self.store, self.store.client.get_run(self.run_id).info.artifact_uri)
        try:
            for path in list(_files_below(files, names.REPORT_ARTIFACT)):
                if not (folder / PurePosixPath(path).relative_to(names.REPORT_ARTIFACT)).exists():
                    files.delete_artifacts(path)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            logger.warning("the report in MLflow keeps files of an earlier one, which cannot be deleted: %s", reason)

    def _tell(self) -> None:
        """Have the store told of trials that it does not know yet."""
        if self._news:
            self._news, self._described = False, monotonic()
            self._writer.put(Described(self.info))

    def _told(self, states: Container[str]) -> set[str]:
        """Trials whose end was told to this sink, and not refused."""
        return {key for key, state in self._ended.items() if state in states} - self._writer.problems.keys()

    def _kept(self, states: Container[str]) -> set[str]:
        """Trials whose end the store had when this sink was opened, and that were not begun again."""
        return {key for key, one in self._stored.items() if one.state in states and not self._runs.set_aside(key, one)}

    def _complete(self) -> bool:
        """Whether every trial of the sweep has ended. What was told is in the store by now."""
        return {label.key for label in self.info.labels} <= self._told(SETTLED) | self._kept(SETTLED)

    def _parent(self) -> str:
        """The sweep's run: the one that is there, set running again, or a new one."""
        client = self.store.client
        sweeps = search(self.store, tagged(names.TAG_KIND, "sweep"))
        # the newest of all, even if the clock was put back
        self._begun = max([time(), *(begun(run) + 0.001 for run in sweeps)])
        mine = (self.info.key, self.info.name)
        for run in sweeps:
            if (run.data.tags.get(names.TAG_SWEEP_KEY), run.data.tags[names.TAG_SWEEP]) == mine:
                client.update_run(run.info.run_id, status="RUNNING")
                return run.info.run_id
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
        client.log_batch(self.run_id, tags=[RunTag(TAG_BEGUN, f"{self._begun:.3f}")])

    def _losses(self) -> str:
        """What could not be logged, for a person; empty when all was."""
        lines = []
        pending = self.pending
        if pending:
            count = "1 trial's records" if len(pending) == 1 else f"{len(pending)} trials' records"
            state = "was too slow" if answers(self.store) else "does not answer"
            lines.append(
                f"{shown(self.store.uri)} {state}. {count} could not be logged; they are kept in "
                f"runs/trials/*/result.json and runs/records, and will be logged by the next run of the same command."
            )
        for key, problem in self._writer.problems.items():
            title = next((f"{label.title} ({key})" for label in self.info.labels if label.key == key), key)
            lines.append(f"{'the sweep' if key == SWEEP else title} could not be logged: {problem[:500]}")
        return "\n".join(lines)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise refused(self.store.uri, error, self._layout) from error


def _files_below(files: ArtifactRepository, path: str) -> Iterator[str]:
    for one in files.list_artifacts(path):
        if one.is_dir:
            yield from _files_below(files, one.path)
        else:
            yield one.path


def listed(names_of_tables: Iterable[str]) -> str:
    """The tag by which MLflow's table view finds a run's tables; as many as fit into a tag."""
    found: list[dict[str, str]] = []
    for name in sorted(names_of_tables):
        more = [*found, {"path": f"{names.REPORT_ARTIFACT}/tables/{name}", "type": "table"}]
        if len(json.dumps(more)) > NOTE_LIMIT:
            break
        found = more
    return json.dumps(found)


def note(info: SweepInfo, table: str) -> str:
    """The text that MLflow shows on a sweep's page, within MLflow's limit: whole lines are left out, never parts."""
    notes = "\n".join(f"- {line}" for line in info.notes)
    text = "\n\n".join(part for part in (f"**{info.question}**" if info.question else "", table.strip(), notes) if part)
    if len(text) <= NOTE_LIMIT:
        return text
    rest = f"\n\n… The whole table is in the artifact `{names.REPORT_ARTIFACT}`."
    return text[: NOTE_LIMIT - len(rest)].rpartition("\n")[0] + rest
