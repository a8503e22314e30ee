"""One sweep into SQLite, into PostgreSQL and to a server of MLflow's: the records and the tables are the same."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from otkd.core import names
from otkd.core.layout import Layout
from otkd.track.store import connect, search

pytestmark = pytest.mark.long

OTKD = [sys.executable, "-c", "from otkd.cli import main; main()"]
CLOCK = re.compile(r"^run_id$|^(time|system|memory)/|latency_ms$")
"""Columns that no two runs of a sweep share: names of runs, and what depends on how busy the machine is."""
TABLES = ("accuracy.csv", "accuracy-best.csv")
SWEEP = """
name: same
question: Does the store change the table?
data: {name: digits, val: 0.2, limit: 100}
pairs:
  - {teacher: resnet8, student: resnet8}
train: {epochs: 2, batch_size: 32}
methods:
  student: {ce: 1}
  kd: {ce: 0.1, kd: {weight: 0.9}}
seeds: [0, 1]
"""


class Record(NamedTuple):
    """What a store has of the sweep."""

    runs: dict[str, tuple[str, int, list[str]]]
    """Name → MLflow's status, the number of its data sets, its files."""
    versions: dict[str, set[str]]
    """Registered model → keys of the trials that are its versions."""


def otkd(uri: str, *words: object) -> None:
    """Run a command to its end."""
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_EXPERIMENT_NAME"}
    surroundings = {**inherited, "MLFLOW_TRACKING_URI": uri}
    command = [*OTKD, *map(str, words)]
    ended = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stderr


def swept(folder: Path, uri: str) -> Layout:
    """Run the whole sweep, then make its report again from the store alone."""
    layout, file = Layout(folder / "runs"), folder / "same.yaml"
    file.write_text(SWEEP, encoding="utf-8")
    otkd(uri, "sweep", file, "--local", "--quiet", "--device", "cpu", "--runs", layout.root)
    for place in (layout.reports, layout.trials, layout.records):
        shutil.rmtree(place)
    otkd(uri, "report", "same", "--runs", layout.root)
    return layout


def recorded(layout: Layout, uri: str) -> Record:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        store = connect(layout)
        models = [model.name for model in store.client.search_registered_models()]
        runs = {run.info.run_name: facts(store.client, run) for run in search(store, "")}
        return Record(runs, {name: trials(store.client, name) for name in models})


def facts(client: MlflowClient, run: Run) -> tuple[str, int, list[str]]:
    files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
    return run.info.status, len(run.inputs.dataset_inputs), files


def trials(client: MlflowClient, model: str) -> set[str]:
    return {version.tags[names.TAG_KEY] for version in client.search_model_versions(f"name = '{model}'")}


def tables(layout: Layout) -> dict[str, str]:
    """The tables of accuracies, and of the trials all that no clock and no other program has a part in."""
    report = layout.reports / "same"
    rows = pd.read_csv(report / "trials.csv").sort_values("key")
    steady = rows[[name for name in rows.columns if not CLOCK.search(name)]]
    return {"trials": steady.to_csv(index=False)} | {
        name: (report / "tables" / name).read_text(encoding="utf-8") for name in TABLES
    }


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A real `mlflow server` with a database and files of its own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with (folder / "server.txt").open("wb") as log:
        server = subprocess.Popen(
            [*command, *places], env=inherited, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while not answers(uri):
            assert server.poll() is None, (folder / "server.txt").read_text()
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(uri: str) -> bool:
    try:
        urlopen(f"{uri}/health", timeout=2).close()
    except OSError:
        return False
    return True


def test_the_same_sweep_has_the_same_table_everywhere(postgres: str, tmp_path: Path) -> None:
    folders = [tmp_path / store for store in ("sqlite", "postgres", "server")]
    for folder in folders:
        folder.mkdir()
    with mlflow_server(folders[2]) as server, ThreadPoolExecutor() as pool:
        uris = (f"sqlite:///{folders[0]}/mlflow.db", postgres, server)
        layouts = list(pool.map(swept, folders, uris))
        records = list(map(recorded, layouts, uris))
    in_sqlite, in_postgres, on_server = map(tables, layouts)
    assert in_postgres == in_sqlite
    assert on_server == in_sqlite
    assert records[1] == records[0]
    assert records[2] == records[0]
    assert_whole(in_sqlite, records[0])


def assert_whole(made: dict[str, str], record: Record) -> None:
    """The sweep's run, a teacher's and four students' are there, and both methods have a mean of two seeds."""
    assert [status for status, *_ in record.runs.values()] == ["FINISHED"] * 6
    assert sorted(map(len, record.versions.values())) == [1, 4]
    table = pd.read_csv(StringIO(made["accuracy.csv"])).set_index("method")
    assert table.loc[["student", "kd"], "n"].tolist() == [2, 2]
    assert table["mean"].notna().all()
