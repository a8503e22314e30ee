"""Reading runs with their curves as a frame: otkd's way beside MLflow's `search_runs` and `get_metric_history`.

The floor is SQLite itself: the same rows, fetched and forgotten.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from typing import Any

import pandas as pd

from benchmarks.reporting.store import EPOCH_METRICS, Size
from benchmarks.training.speed import shown
from benchmarks.training.targets import Target
from benchmarks.transport.tables import Table
from otkd.core import names
from otkd.core.layout import Layout

PART = 100
"""Runs that both read."""
ROUNDS = 3

LEGEND = """\
MLflow: `mlflow.search_runs`, then `get_metric_history` for each run and metric. Both ways give the same values, which
is checked; they are read in turn, in one process that has read them before, and the medians count.
floor: Python's sqlite3 fetches the curves' rows, run by run, and nothing is made of them."""

TARGETS = (Target("curves are read 10 × as fast as by MLflow's calls", "MLflow / otkd", 10),)


def measure(layout: Layout, size: Size) -> Iterator[Table]:
    """A process of its own reads a part of the sweep both ways."""
    with get_context("spawn").Pool(1) as pool:
        record = pool.apply(both, (layout.root, min(PART, size.trials)))
    yield shown(f"runs with {len(EPOCH_METRICS)} curves of {size.epochs} epochs", [record])


def both(root: Any, count: int) -> dict[str, Any]:
    """Seconds of both ways.

    Raises:
        RuntimeError: they do not give the same.
    """
    from otkd.track.store import connect

    store = connect(Layout(root))
    keys = some(store, count)
    ways: dict[str, Callable[[Any, Sequence[str]], tuple[int, pd.DataFrame]]] = {"otkd": ours, "MLflow": theirs}
    (told, curves), (told_too, curves_too) = (way(store, keys) for way in ways.values())
    if told != told_too or not in_order(curves).equals(in_order(curves_too)):
        raise RuntimeError("otkd and MLflow do not read the same")
    ids = sorted(curves["run"].unique())
    timed: dict[str, Callable[[], Any]] = {name: partial(way, store, keys) for name, way in ways.items()}
    timed["floor"] = partial(bare, Layout(root), ids)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, way in timed.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {"MLflow / otkd": median["MLflow"] / median["otkd"], "otkd / floor": median["otkd"] / median["floor"]}
    times = {f"{name} s": value for name, value in median.items()}
    return {"runs": str(count), "values": str(len(curves)), **times, **ratios}


def some(store: Any, count: int) -> list[str]:
    """Keys of the first students."""
    found = store.client.search_runs([store.experiment], f"tags.`{names.TAG_KIND}` = 'student'", max_results=count)
    return [run.data.tags[names.TAG_KEY] for run in found]


def ours(store: Any, keys: Sequence[str]) -> tuple[int, pd.DataFrame]:
    """How many settings and tags there are, and the curves."""
    from otkd.track.bulk import trial_runs
    from otkd.track.history import curves

    runs = [runs[0] for runs in trial_runs(store, keys).values()]
    told = sum(len(run.params) + len(run.tags) for run in runs)
    ids = sorted(run.id for run in runs)
    parts = []
    for metric in EPOCH_METRICS:
        place, step, value = curves(store, ids, metric)
        run = pd.Categorical.from_codes(place, categories=ids)
        parts.append(pd.DataFrame({"run": run, "metric": metric, "epoch": step, "value": value}))
    return told, pd.concat(parts, ignore_index=True)


def theirs(store: Any, keys: Sequence[str]) -> tuple[int, pd.DataFrame]:
    """As `ours`."""
    import mlflow

    kept = f"tags.`{names.TAG_KIND}` = 'student'"
    mlflow.set_tracking_uri(store.uri)
    try:
        runs = mlflow.search_runs([store.experiment], kept, max_results=len(keys))
    finally:
        mlflow.set_tracking_uri(None)  # which takes it out of the environment, too
    told = sum(runs[name].notna().sum() for name in runs if name.startswith(("params.", "tags.")))
    rows = [
        (run, metric, one.step, one.value)
        for run in runs["run_id"]
        for metric in EPOCH_METRICS
        for one in store.client.get_metric_history(run, metric)
    ]
    return told, pd.DataFrame(rows, columns=["run", "metric", "epoch", "value"])


def bare(layout: Layout, ids: Sequence[str]) -> int:
    """How many rows the curves have."""
    wanted = ", ".join("?" * len(EPOCH_METRICS))
    query = f"SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? AND key IN ({wanted})"
    with closing(sqlite3.connect(layout.database)) as database:
        return sum(len(database.execute(query, (id_, *EPOCH_METRICS)).fetchall()) for id_ in ids)


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Both ways' curves look alike."""
    frame = frame.astype({"run": str, "metric": str})
    return frame.sort_values(["run", "metric", "epoch"], ignore_index=True)
