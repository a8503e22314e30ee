"""Sweeps as MLflow has them: all that a report needs."""

from __future__ import annotations

import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from otkd.core import names
from otkd.core.errors import OtkdError, TrackingError
from otkd.core.layout import Layout
from otkd.core.plugins import unknown
from otkd.core.records import Label, SweepInfo
from otkd.track.history import points
from otkd.track.store import Store, begun, connect, search, shown, tagged

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


class SweepRecord(NamedTuple):
    """A sweep with all its trials."""

    info: SweepInfo
    run_id: str
    started: float
    """When it was last begun, in seconds since 1970."""
    trials: tuple[TrialRow, ...]
    """In the order of the plan: teachers first."""


def sweeps(layout: Layout) -> list[tuple[str, str, float]]:
    """(run id, name, when it was last begun) of every sweep, the newest first.

    Raises:
        TrackingError: nothing is recorded yet, or the store does not answer.
    """
    return [
        (run.info.run_id, run.data.tags[names.TAG_SWEEP], begun(run)) for run in _parents(connect(layout, create=False))
    ]


def read_sweep(layout: Layout, name: str | None = None) -> SweepRecord:
    """The newest sweep, or the newest of a name (with its profile, `demo-quick`, or without, `demo`).

    Raises:
        TrackingError: nothing is recorded yet, or the store does not answer.
        OtkdError: there is no sweep of that name.
    """
    store = connect(layout, create=False)
    parents = _parents(store)
    if not parents:
        raise TrackingError(f"no sweep is recorded in {shown(store.uri)} yet. Run one first: `otkd sweep FILE`.")
    parent = next((run for run in parents if name is None or name in _names(run)), None)
    if parent is None:
        raise OtkdError(unknown("sweep", name, list(dict.fromkeys(run.data.tags[names.TAG_SWEEP] for run in parents))))
    info = SweepInfo.model_validate_json(_plan(store, layout, parent.info.run_id))
    runs = _runs_by_key(store)
    trials = tuple(_row(label, runs.get(label.key, [])) for label in info.labels)
    return SweepRecord(info, parent.info.run_id, begun(parent), trials)


def histories(layout: Layout, record: SweepRecord, metric: str) -> dict[str, list[tuple[int, float]]]:
    """Trial key → (epoch, value) in order, for every trial that has the metric."""
    keys = {row.run_id: row.label.key for row in record.trials if metric in row.metrics}
    found: dict[str, dict[int, float]] = {key: {} for key in keys.values()}
    for point in points(connect(layout, create=False), list(keys), metric):
        found[keys[point.run_id]].setdefault(point.step, number(point.value))
    return {key: sorted(steps.items()) for key, steps in found.items()}


def number(value: float) -> float:
    """A metric's value; databases keep an infinity as the largest number that there is."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max * 0.999 else value


def _parents(store: Store) -> list[Run]:
    return sorted(search(store, tagged(names.TAG_KIND, "sweep")), key=begun, reverse=True)


def _names(run: Run) -> tuple[str, str]:
    full = run.data.tags[names.TAG_SWEEP]
    return full, full.removesuffix("-" + run.data.tags.get(names.TAG_PROFILE, ""))


def _runs_by_key(store: Store) -> dict[str, list[Run]]:
    """Every trial's runs, the newest first; as a rule there is one."""
    runs = defaultdict(list)
    for run in search(store, tagged(names.TAG_KIND, "sweep", "!=")):
        runs[run.data.tags.get(names.TAG_KEY, "")].append(run)
    return runs


def _row(label: Label, runs: list[Run]) -> TrialRow:
    if not runs:
        return TrialRow(label, "", "missing", {}, {}, {})
    status, run = min(((_status(run), run) for run in runs), key=lambda pair: (*STATES, "missing").index(pair[0]))
    metrics = {name.removeprefix(names.SEARCHED): number(value) for name, value in run.data.metrics.items()}
    return TrialRow(label, run.info.run_id, status, metrics, dict(run.data.params), dict(run.data.tags))


def _status(run: Run) -> str:
    """A result counts once its run has been ended: until then not all of it may be there."""
    if run.info.status == "RUNNING":
        return "running"
    status = run.data.tags.get(names.TAG_STATUS)
    return status if status in STATES else "missing"


def _plan(store: Store, layout: Layout, run_id: str) -> str:
    """The plan of a sweep; read here if it is here, as MLflow's own paths break when `runs/` is moved."""
    here = layout.artifacts / run_id / "artifacts" / names.PLAN_ARTIFACT
    if here.exists():
        return here.read_text(encoding="utf-8")
    try:
        with tempfile.TemporaryDirectory(prefix="otkd-plan-") as folder:
            return Path(store.client.download_artifacts(run_id, names.PLAN_ARTIFACT, folder)).read_text(
                encoding="utf-8"
            )
    except Exception as error:
        raise TrackingError(f"{shown(store.uri)}: the plan of sweep run {run_id} cannot be read: {error}") from error
