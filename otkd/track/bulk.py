"""Runs and curves straight from the tables of MLflow's database: its calls make an object of every value, which costs
minutes for thousands of runs."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from otkd.core import names
from otkd.track.store import Store, search, tagged

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import Run
    from numpy.typing import NDArray

RUNS_PER_QUERY = 500
"""Run ids that a query names; databases take no list of any length."""

ROWS = 200_000
"""Rows that are in memory at once, before they become columns."""

LARGEST = sys.float_info.max * 0.999
"""Databases keep an infinity as the largest number that there is."""


class TrialRun(NamedTuple):
    """One run of a trial, with what was logged last."""

    id: str
    status: str
    """MLflow's: `RUNNING`, `FINISHED`, `FAILED`, `KILLED`."""
    started: int
    """In milliseconds since 1970."""
    ended: int | None
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]
    data: tuple[tuple[str, str], ...] = ()
    """(part, digest) of the images that it saw."""
    place: str = ""
    """Address of its files."""


class Columns(NamedTuple):
    """Values of one metric in several runs: run by run in the order asked for, by step, one value a step."""

    run: NDArray[np.int64]
    """Place among the runs that were asked for."""
    step: NDArray[np.int64]
    value: NDArray[np.float64]


def database(store: Store) -> Any:
    """MLflow's store over a database that can be asked directly; None where there is a server between, or no database.

    Its `ManagedSessionMaker` knows of read replicas, and of what a database wants to be told first.
    """
    found = store.client._tracking_client.store
    return found if hasattr(found, "engine") and hasattr(found, "ManagedSessionMaker") else None


def trial_runs(store: Store, keys: Sequence[str]) -> dict[str, list[TrialRun]]:
    """Trial key → its runs, the newest first; as a rule there is one.

    Raises:
        Exception: whatever MLflow raises when the store is away.
    """
    runs = _of_tables(store, keys) if database(store) is not None else _of_calls(store)
    wanted, found = set(keys), defaultdict[str, list[TrialRun]](list)
    for run in sorted(runs, key=lambda run: (-run.started, run.id)):
        key = run.tags.get(names.TAG_KEY, "")
        if key in wanted:
            found[key].append(run)
    return found


def _of_calls(store: Store) -> list[TrialRun]:
    return [_of_entity(run) for run in search(store, tagged(names.TAG_KIND, "sweep", "!="))]


def _of_entity(run: Run) -> TrialRun:
    data = run.data
    ends = (run.info.status, run.info.start_time or 0, run.info.end_time)
    inputs = run.inputs.dataset_inputs if run.inputs else []
    digests = {tag.value: one.dataset.digest for one in inputs for tag in one.tags if tag.key == names.DATA_CONTEXT}
    images = tuple(sorted(digests.items()))
    values = dict(data.metrics), dict(data.params), dict(data.tags)
    return TrialRun(run.info.run_id, *ends, *values, images, run.info.artifact_uri)


def _of_tables(store: Store, keys: Sequence[str]) -> list[TrialRun]:
    from mlflow.store.tracking.dbmodels import models
    from sqlalchemy import select

    runs, tags = models.SqlRun.__table__.c, models.SqlTag.__table__.c
    metrics, params = models.SqlLatestMetric.__table__.c, models.SqlParam.__table__.c
    kind, key = (models.SqlTag.__table__.alias(name).c for name in ("kind", "key"))
    ours = (
        select(runs.run_uuid, runs.status, runs.start_time, runs.end_time, runs.artifact_uri, key.value)
        .where(runs.experiment_id == int(store.experiment), runs.lifecycle_stage == "active")
        .where(kind.run_uuid == runs.run_uuid, kind.key == names.TAG_KIND, kind.value != "sweep")
        .where(key.run_uuid == runs.run_uuid, key.key == names.TAG_KEY)
    )
    wanted = set(keys)
    with database(store).ManagedSessionMaker() as session:
        heads = [row[:5] for row in _rows(session, ours) if row[5] in wanted]
        found = {
            id_: TrialRun(id_, status, start or 0, end, {}, {}, {}, place=place or "")
            for id_, status, start, end, place in heads
        }
        for some in batches(list(found)):
            for table, field in ((params, "params"), (tags, "tags")):
                query = select(table.run_uuid, table.key, table.value).where(table.run_uuid.in_(some))
                for id_, name, value in _rows(session, query):
                    getattr(found[id_], field)[sys.intern(name)] = value
            last = select(metrics.run_uuid, metrics.key, metrics.value, metrics.is_nan)
            for id_, name, value, is_nan in _rows(session, last.where(metrics.run_uuid.in_(some))):
                found[id_].metrics[sys.intern(name)] = float("nan") if is_nan else value
            for id_, digests in _images(session, some).items():
                found[id_] = found[id_]._replace(data=tuple(sorted(digests.items())))
    return list(found.values())


def _images(session: Any, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Run id → part → digest of its dataset inputs."""
    from mlflow.store.tracking.dbmodels import models
    from sqlalchemy import select

    inputs, tags, sets = (one.__table__.c for one in (models.SqlInput, models.SqlInputTag, models.SqlDataset))
    query = (
        select(inputs.destination_id, tags.value, sets.digest)
        .where(inputs.destination_id.in_(run_ids), inputs.source_id == sets.dataset_uuid)
        .where(tags.input_uuid == inputs.input_uuid, tags.name == names.DATA_CONTEXT)
    )
    found = defaultdict[str, dict[str, str]](dict)
    for id_, part, digest in _rows(session, query):
        found[id_][sys.intern(part)] = sys.intern(digest)
    return found


def columns(store: Store, run_ids: Sequence[str], metric: str) -> Columns:
    """Every step of a metric in runs of a store over a database; of a step that was logged twice the first value.

    Raises:
        Exception: whatever MLflow raises when the store is away.
    """
    import numpy as np

    places = {run_id: place for place, run_id in enumerate(run_ids)}
    parts = [tidy(np.empty(0, int), np.empty(0, int), np.empty(0))]
    for rows in _chunks(store, run_ids, metric):
        run = np.fromiter((places.get(row[0], -1) for row in rows), int, len(rows))
        step = np.fromiter((row[1] for row in rows), int, len(rows))
        value = np.fromiter((row[2] for row in rows), float, len(rows))
        value[np.fromiter((row[3] for row in rows), bool, len(rows))] = np.nan
        ours = run >= 0
        parts.append(Columns(run[ours], step[ours], value[ours]))
    return tidy(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def tidy(run: NDArray[np.int64], step: NDArray[np.int64], value: NDArray[np.float64]) -> Columns:
    """Columns in order, of values that come in the order in which they were measured."""
    import numpy as np

    order = np.lexsort((step, run))
    run, step, value = run[order], step[order], value[order]
    first = np.ones(len(run), dtype=bool)
    first[1:] = (run[1:] != run[:-1]) | (step[1:] != step[:-1])
    value = np.where(np.abs(value) >= LARGEST, np.copysign(np.inf, value), value)
    return Columns(run[first], step[first], value[first])


def _chunks(store: Store, run_ids: Sequence[str], metric: str) -> Iterator[Sequence[Any]]:
    """Rows (run id, step, value, whether that is NaN) in the order in which a run's were measured.

    The order is that of the table's primary key, which has all of these columns: where most runs are wanted, a database
    reads a part of that index from end to end, and sorts nothing.
    """
    from mlflow.store.tracking.dbmodels import models
    from sqlalchemy import func, select

    table = models.SqlMetric.__table__.c
    asked = select(table.run_uuid, table.step, table.value, table.is_nan).where(table.key == metric)
    every = asked.order_by(table.timestamp, table.step, table.run_uuid, table.value)
    own = asked.order_by(table.timestamp + 0, table.step, table.value)  # a sum, so that this index is not used for it
    with database(store).ManagedSessionMaker() as session:
        most = 2 * len(run_ids) >= session.scalar(select(func.count()).select_from(models.SqlRun.__table__))
        some = [every] if most else [own.where(table.run_uuid.in_(ids)) for ids in batches(run_ids)]
        for query in some:
            yield from _parts(session, query)


def _rows(session: Any, query: Any) -> Iterator[Sequence[Any]]:
    for rows in _parts(session, query):
        yield from rows


def _parts(session: Any, query: Any) -> Iterator[Sequence[Any]]:
    """The rows of an answer, many at once; SQLite's from its own cursor, as SQLAlchemy takes five times as long."""
    connection = session.connection()
    if connection.dialect.name != "sqlite":
        yield from connection.execute(query.execution_options(yield_per=ROWS)).partitions()
        return
    found = connection.execute(query)
    while rows := found.cursor.fetchmany(ROWS):
        yield rows
    found.close()


def batches(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Run ids, as many at once as a query may name."""
    for start in range(0, len(run_ids), RUNS_PER_QUERY):
        yield run_ids[start : start + RUNS_PER_QUERY]
