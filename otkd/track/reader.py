"""Sweeps as MLflow has them: all that a report needs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from pydantic import ValidationError

from otkd.core import names
from otkd.core.errors import OtkdError, TrackingError
from otkd.core.layout import Layout
from otkd.core.plugins import unknown
from otkd.core.records import Label, SweepInfo
from otkd.track.bulk import LARGEST, Columns, TrialRun, trial_runs
from otkd.track.files import TrialFiles, downloaded, folder_of, kept_here
from otkd.track.history import curves as curves_of
from otkd.track.notes import link
from otkd.track.store import (
    FILE,
    Store,
    begun,
    connect,
    experiment_name,
    is_server,
    refused,
    search,
    served,
    shown,
    tagged,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

STATES = ("finished", "diverged", "pruned", "failed", "running")


class TrialRow(NamedTuple):
    """One trial of a sweep, whichever sweep it was trained in."""

    label: Label
    run_id: str
    """Empty when the trial has no run."""
    status: str
    """`finished`, `diverged`, `pruned`, `failed`, `running` or `missing` (not started, or interrupted)."""
    metrics: dict[str, float]
    """Last value of each metric."""
    params: dict[str, str]
    tags: dict[str, str]
    data: tuple[tuple[str, str], ...] = ()
    """(part, digest) of the images that it saw: training, validation and test, as `otkd.track.inputs` tells them."""
    ended: int | None = None
    """When its run ended, in milliseconds since 1970; None where it has not, or may go on unseen."""
    place: str = ""
    """Address of the files of its run, as MLflow has it."""


class SweepRecord(NamedTuple):
    """A sweep with all its trials."""

    info: SweepInfo
    run_id: str
    started: float
    """When it was last begun, in seconds since 1970."""
    trials: tuple[TrialRow, ...]
    """In the order of the plan: teachers first."""
    experiment: str = ""
    """Id of MLflow's experiment."""
    ui: str = ""
    """Address of MLflow's pages, e.g. `http://127.0.0.1:5000`; empty where it is not known."""

    def page(self, run_id: str) -> str:
        """Address of the page of a run; empty where there is none."""
        return f"{self.ui}/{link(quote(self.experiment), quote(run_id))}" if self.ui and run_id else ""


def sweeps(layout: Layout) -> list[tuple[str, str, float]]:
    """(run id, name, when it was last begun) of every sweep, the newest first.

    Raises:
        TrackingError: nothing is recorded yet, or the store does not answer.
    """
    return [
        (run.info.run_id, run.data.tags[names.TAG_SWEEP], begun(run))
        for run in _parents(connect(layout, create=False), layout)
    ]


def read_sweep(layout: Layout, name: str | None = None) -> SweepRecord:
    """The newest sweep, or the newest of a name (with its profile, `demo-quick`, or without, `demo`).

    Raises:
        TrackingError: nothing is recorded yet, or the store does not answer.
        OtkdError: there is no sweep of that name.
    """
    store = connect(layout, create=False)
    parents = _parents(store, layout)
    if not parents:
        raise TrackingError(f"no sweep is recorded in {shown(store.uri)} yet. Run one first: `otkd sweep FILE`.")
    parent = next((run for run in parents if name is None or name in _names(run)), None)
    if parent is None:
        raise OtkdError(unknown("sweep", name, list(dict.fromkeys(run.data.tags[names.TAG_SWEEP] for run in parents))))
    info = _plan(store, layout, parent)
    with _answering(store, layout):
        runs = trial_runs(store, [label.key for label in info.labels])
    trials = tuple(_row(label, runs.get(label.key, [])) for label in info.labels)
    return SweepRecord(info, parent.info.run_id, begun(parent), trials, store.experiment, served(store.uri))


def curves(layout: Layout, run_ids: Sequence[str], metric: str) -> Columns:
    """Every epoch of a metric in several runs, by their places in `run_ids`; runs that lack it have no rows.

    Raises:
        TrackingError: the store does not answer.
    """
    store = connect(layout, create=False)
    with _answering(store, layout):
        return curves_of(store, run_ids, metric)


def place(layout: Layout) -> str:
    """Names the store and the experiment that are read; it may hold a password, so it is not for print."""
    return f"{tracking_uri(layout)} {experiment_name()}"


def database_file(layout: Layout) -> Path | None:
    """The file that keeps the records; None where the store is no database in a file."""
    uri = tracking_uri(layout)
    return Path(uri.removeprefix(FILE).partition("?")[0]) if uri.startswith(FILE) else None


def needs_ui(layout: Layout) -> bool:
    """Whether MLflow's pages are there only while `otkd ui` serves them; else the tracking server has them."""
    return not is_server(tracking_uri(layout))


def files(layout: Layout, record: SweepRecord) -> TrialFiles:
    """What MLflow keeps as files of a record's trials; the store is not looked for before the first is asked for."""
    return TrialFiles(layout, {row.label.key: (row.run_id, row.place) for row in record.trials})


def are_here(layout: Layout, row: TrialRow) -> bool:
    """Whether the files of a trial lie on this machine, so that no store has to be asked for them."""
    return folder_of(layout, row.run_id, row.place) is not None


def number(value: float) -> float:
    """A metric's value; databases keep an infinity as the largest number that there is."""
    return math.copysign(math.inf, value) if abs(value) >= LARGEST else value


@contextmanager
def _answering(store: Store, layout: Layout) -> Iterator[None]:
    """Inside, whatever MLflow raises becomes a `TrackingError` that names the store, and the way out."""
    try:
        yield
    except Exception as error:
        raise refused(store.uri, error, layout) from error


def _parents(store: Store, layout: Layout) -> list[Run]:
    """Runs of sweeps; one that only looks like it, and has no name, is not otkd's."""
    with _answering(store, layout):
        found = search(store, tagged(names.TAG_KIND, "sweep"))
    return sorted((run for run in found if run.data.tags.get(names.TAG_SWEEP)), key=begun, reverse=True)


def _names(run: Run) -> tuple[str, str]:
    full = run.data.tags[names.TAG_SWEEP]
    return full, full.removesuffix("-" + run.data.tags.get(names.TAG_PROFILE, ""))


def _row(label: Label, runs: list[TrialRun]) -> TrialRow:
    if not runs:
        return TrialRow(label, "", "missing", {}, {}, {})
    status, run = min(((_status(run), run) for run in runs), key=lambda pair: (*STATES, "missing").index(pair[0]))
    metrics = {name.removeprefix(names.SEARCHED): number(value) for name, value in run.metrics.items()}
    ended = None if status in ("running", "missing") else run.ended
    return TrialRow(label, run.id, status, metrics, run.params, run.tags, run.data, ended, run.place)


def _status(run: TrialRun) -> str:
    """A result counts once its run has been ended: until then not all of it may be there."""
    if run.status == "RUNNING":
        return "running"
    status = run.tags.get(names.TAG_STATUS)
    return status if status in STATES else "missing"


def _plan(store: Store, layout: Layout, run: Run) -> SweepInfo:
    """The plan of a sweep; read here if it is here, as MLflow's own paths break when `runs/` is moved."""
    here = kept_here(layout, run.info.run_id) / names.PLAN_ARTIFACT
    try:
        text = (
            here.read_text(encoding="utf-8") if here.exists() else downloaded(store, run.info.artifact_uri, here.name)
        )
    except Exception as error:
        raise TrackingError(_no_plan(store, run, error)) from error
    try:
        return SweepInfo.model_validate_json(text)
    except ValidationError as error:  # nothing to wait for
        raise OtkdError(_no_plan(store, run, error)) from error


def _no_plan(store: Store, run: Run, error: Exception) -> str:
    said = textwrap.shorten(str(error), 300, placeholder=" …")
    return (
        f"{shown(store.uri)}: {names.PLAN_ARTIFACT} of {run.data.tags[names.TAG_SWEEP]} (run {run.info.run_id}) "
        f"cannot be read ({said}). The command of that sweep writes it again; `otkd report NAME` reports another."
    )
