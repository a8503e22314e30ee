"""The store: found, made, or refused with one clear message; and a server that dies and comes back."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from werkzeug.serving import make_server

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.track.mlflow import MlflowSink
from otkd.track.reader import histories, read_sweep
from otkd.track.store import connect, serve_ui, shown, tracking_uri

pytestmark = pytest.mark.usefixtures("layout")


def test_defaults_and_environment(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(layout) == f"sqlite:///{layout.database.resolve()}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    store = connect(layout)
    experiment = store.client.get_experiment(store.experiment)
    assert (experiment.name, experiment.artifact_location) == ("mine", layout.artifacts.resolve().as_uri())
    assert connect(layout).experiment == store.experiment
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://x")
    assert tracking_uri(layout) == "http://x"


def test_the_first_database_is_made_in_silence(tmp_path: Path) -> None:
    code = "import sys; from otkd.track.store import *; connect(Layout(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "new runs")], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_an_absent_server_is_told_at_once(
    layout: Layout, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(
        TrackingError, match=rf"{uri} cannot be reached \(Connection refused\).*unset MLFLOW_TRACKING_URI"
    ):
        connect(layout)
    assert time.monotonic() - began < 10


def test_a_silent_server_is_told_soon(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otkd.track.store.ANSWER_S", 0.3)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(TrackingError, match=r"did not answer within 0\.3 s"):
            connect(layout)


def test_a_refused_store_says_why(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    with pytest.raises(TrackingError, match="refuses: "):
        connect(layout)
    (tmp_path / "other.db").write_text("not a database, but longer than its header would be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(TrackingError, match="refuses: "):
        connect(layout)


def test_a_deleted_experiment_is_not_resurrected(layout: Layout) -> None:
    store = connect(layout)
    store.client.delete_experiment(store.experiment)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        connect(layout)


def test_pages_are_served_where_they_can_be(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrackingError, match="Run a sweep first"):
        serve_ui(layout, 1)
    connect(layout)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TrackingError, match="is taken; name another with --port"):
            serve_ui(layout, taken.getsockname()[1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert serve_ui(layout, 1) == 0
    assert "http://elsewhere:5000" in capsys.readouterr().out


def test_passwords_are_not_shown() -> None:
    assert shown("https://me:secret@host/x") == "https://…@host/x"


@contextmanager
def server(port: int) -> Iterator[None]:
    """MLflow's own server application over HTTP; in a thread, as `mlflow server` takes half a minute to start."""
    from mlflow.server import app

    http = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database and an artifact folder for the server."""
    from mlflow.server import constants, handlers

    monkeypatch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{tmp_path}/server.db")
    monkeypatch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
    monkeypatch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(tmp_path / "server-artifacts"))
    monkeypatch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
    monkeypatch.setattr(handlers, "_tracking_store", None)
    monkeypatch.setattr(handlers, "_model_registry_store", None)


@pytest.mark.usefixtures("backend")
def test_a_server_that_dies_and_comes_back(
    layout: Layout,
    invented: Any,
    say: Any,
    tmp_path: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    first, second, *_ = invented.students
    with server(port):
        sink = MlflowSink(invented.info, layout, pause=0.1)
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")  # the server, in this process, has set it to its own
        sink.start(first)
        sink.epoch(say.record(first.key, 1))
        assert sink.flush(20)
    sink.epoch(say.record(first.key, 2))
    sink.finish(say.result(first.key, metrics={"test/last/loss": float("nan"), "test/last/top1": 71.0}))
    sink.start(second)
    sink.finish(say.result(second.key))
    assert not sink.flush(1)
    assert sink.pending == {first.key, second.key}
    with server(port):
        sink.close(timeout=30)
        sweep = read_sweep(layout, "toy")
        assert [row.status for row in sweep.trials].count("finished") == 2
        assert set(histories(layout, sweep, "lr")) == {first.key, second.key}
        for row in sweep.trials:
            if row.status == "finished":
                points = sink.store.client.get_metric_history(row.run_id, "lr")
                assert sorted(point.step for point in points) == [1, 2, 3]
                assert row.tags["otkd.status"] == "finished"
