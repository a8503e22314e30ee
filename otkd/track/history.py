"""The values of one metric in many runs: from a database in one go, from a server a hundred runs a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from otkd.track.bulk import Columns, columns, database, tidy
from otkd.track.store import Store, is_server

RUNS_PER_CALL, VALUES_PER_CALL = 100, 25_000
"""What MLflow's server gives at once."""

BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


class Point(NamedTuple):
    """One value of a metric."""

    run_id: str
    step: int
    value: float


def curves(store: Store, run_ids: Sequence[str], metric: str) -> Columns:
    """Every step of a metric, run by run in the order asked for; of a step that was logged twice the first value.

    Raises:
        Exception: whatever MLflow raises when the store is away.
    """
    if database(store) is not None:
        return columns(store, run_ids, metric)
    import numpy as np

    places = {run_id: place for place, run_id in enumerate(run_ids)}
    rows = [(places[point.run_id], point.step, point.value) for point in points(store, run_ids, metric)]
    run, step, value = zip(*rows, strict=True) if rows else ((), (), ())
    return tidy(np.asarray(run, dtype=int), np.asarray(step, dtype=int), np.asarray(value, dtype=float))


def points(store: Store, run_ids: Sequence[str], metric: str) -> Iterator[Point]:
    """Every value of a metric, run by run, each run's in the order in which they were measured.

    Raises:
        Exception: whatever MLflow raises when the store is away.
    """
    left = list(run_ids)
    while left:
        found = _bulk(store, left[:RUNS_PER_CALL], metric)
        if len(found) < VALUES_PER_CALL:
            yield from found
            left = left[RUNS_PER_CALL:]
            continue
        cut = found[-1].run_id
        whole = {point.run_id for point in found} - {cut}
        yield from (point for point in found if point.run_id != cut) if whole else _single(store, cut, metric)
        left = [run_id for run_id in left if run_id not in (whole or {cut})]


def _bulk(store: Store, run_ids: Sequence[str], metric: str) -> list[Point]:
    """The first values of several runs, run by run."""
    if is_server(store.uri):
        return _of_server(store, run_ids, metric)
    found = store.client._tracking_client.store.get_metric_history_bulk(list(run_ids), metric, VALUES_PER_CALL)
    return [Point(one.run_id, one.step, one.value) for one in found]


def _of_server(store: Store, run_ids: Sequence[str], metric: str) -> list[Point]:
    """By the call of MLflow's own pages; run by run where a server lacks it."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    asked = [*(("run_id", run_id) for run_id in run_ids), ("metric_key", metric), ("max_results", VALUES_PER_CALL)]
    reply = http_request(get_default_host_creds(store.uri), BULK, "GET", params=asked)
    if reply.status_code != 200:
        return [point for run_id in run_ids for point in _single(store, run_id, metric)]
    return [Point(one["run_id"], int(one["step"]), float(one["value"])) for one in reply.json()["metrics"]]


def _single(store: Store, run_id: str, metric: str) -> list[Point]:
    return [Point(run_id, one.step, one.value) for one in store.client.get_metric_history(run_id, metric)]
