"""The store: found, made, or refused with one clear message; and a server that dies and comes back."""

from __future__ import annotations

import multiprocessing
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psycopg
import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.track.mlflow import MlflowSink
from otkd.track.reader import read_sweep
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
        [sys.executable, "-c", code, str(tmp_path / "new runs")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    with pytest.raises(TrackingError, match="refuses: "):
        connect(layout)
    (tmp_path / "other.db").write_text("not a database, but longer than its header would be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(TrackingError, match=r"refuses: .*\. Correct MLFLOW_TRACKING_URI, or unset") as refused:
        connect(layout)
    assert "Start it" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "htp://foo",
            r"store htp://foo is of no kind .* sqlite:///FILE, .*https://HOST\. Correct MLFLOW_TRACKING_URI, ",
        ),
        ("127.0.0.1:5000", r"store 127\.0\.0\.1:5000 is a folder to MLflow; a server is http://127\.0\.0\.1:5000,"),
        ("me:secret@host:5000", r"store me:…@host:5000 is a folder to MLflow"),
        ("runs/mlflow.db", r"is a folder to MLflow; .*, a file sqlite:///FILE\. Correct MLFLOW_TRACKING_URI, "),
        ("sqlite://runs/mlflow.db", r"names no file: that takes three slashes, sqlite:///runs/mlflow\.db\. Correct"),
        ("postgresql://me:se@secret@host/x", r"//…@host/x has more than one @; in a name or password it is .* %40\."),
        ("mysql://me:secret@host/x", r"needs the Python package 'MySQLdb'\. Install it, correct MLFLOW_TRACKING_URI, "),
    ],
)
def test_an_address_that_is_of_no_use_here(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=expected) as refused:
        connect(layout)
    assert "Start it" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_folder_that_is_not_there_is_taken_for_a_mistake(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "typo"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/x.db")
    with pytest.raises(TrackingError, match=rf"there is no folder {folder}\. Make it, correct MLFLOW_TRACKING_URI, "):
        connect(layout)
    assert not folder.exists()


def test_a_folder_of_ours_that_cannot_be_made(tmp_path: Path, layout: Layout) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TrackingError, match=r"cannot be reached \(File exists\)\. Repair or move it, or name another"):
        connect(Layout(file))


def test_a_store_that_may_not_be_written_says_so(layout: Layout, invented: Any) -> None:
    with closing(sqlite3.connect(layout.database)) as database:
        database.execute("CREATE TRIGGER t BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'no permission'); END")
    with pytest.raises(TrackingError, match=r"mlflow\.db refuses: .*no permission.* name another --runs"):
        MlflowSink(invented.info, layout)


def test_files_that_go_to_another_folder_are_announced(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(layout))
    for _ in range(2):
        connect(layout)
    other = Layout(tmp_path / "other")
    connect(other, create=False)
    assert caplog.messages == []
    connect(other)
    (said,) = caplog.messages
    assert f"go to {layout.artifacts}, where experiment 'otkd' keeps them, and not to {other.artifacts}." in said
    assert "MLFLOW_EXPERIMENT_NAME" in said
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    connect(other)
    connect(other)
    assert len(caplog.messages) == 1


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


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://me:secret@host/x", "https://…@host/x"),
        ("https://me:se@cret@host/x", "https://…@host/x"),
        ("postgresql+psycopg://me:Geh/eim+1=@127.0.0.1:1/mlflow", "postgresql+psycopg://…@127.0.0.1:1/mlflow"),
        ("postgresql://host/x?user=me&password=secret&a=1", "postgresql://host/x?user=me&password=…&a=1"),
        ("postgresql://host/x?password=s@c/t?", "postgresql://host/x?password=…"),
        ("mysql+pymysql://host/x?passwd=secret", "mysql+pymysql://host/x?passwd=…"),
        ("postgresql://me:p@ss@host:1/x", "postgresql://…@host:1/x"),
        ("sqlite:////home/me@x/mlflow.db", "sqlite:////home/me@x/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_passwords_are_not_shown(uri: str, expected: str) -> None:
    assert shown(uri) == expected


@contextmanager
def server(port: int, login: str = "", read_only: bool = False) -> Iterator[None]:
    """MLflow's own server application over HTTP; in a thread, as `mlflow server` takes half a minute to start."""
    from mlflow.server import app

    header = f"Basic {b64encode(login.encode()).decode()}"

    def guarded(environ: Any, respond: Any) -> Any:
        sound = not login or environ.get("HTTP_AUTHORIZATION") == header
        if read_only and environ["PATH_INFO"].endswith("/create"):
            return Response("Permission denied", 403)(environ, respond)
        return (app if sound else Response("who are you?", 401))(environ, respond)

    http = make_server("127.0.0.1", port, guarded, threaded=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def backend(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database and an artifact folder for the server."""
    from mlflow.server import constants, handlers

    shutil.copy(database, tmp_path / "server.db")
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
        assert set(say.histories(layout, sweep, "lr")) == {first.key, second.key}
        for row in sweep.trials:
            if row.status == "finished":
                points = sink.store.client.get_metric_history(row.run_id, "lr")
                assert sorted(point.step for point in points) == [1, 2, 3]
                assert row.tags["otkd.status"] == "finished"


def told(layout: Layout, invented: Any, say: Any) -> tuple[Any, ...]:
    """What a report reads of a sweep with an end of each kind."""
    sink = MlflowSink(invented.info, layout)
    finished, lost, broken, pruned, *_ = invented.trials
    nan = say.record(lost.key, 1).model_copy(update={"metrics": {"train/loss": float("inf"), "lr": 0.1}})
    for t in (finished, lost, broken, pruned):
        sink.start(t)
    sink.finish(say.result(finished.key))
    sink.finish(say.result(lost.key, "diverged", epochs=(nan,), reason="loss is infinite"))
    sink.finish(say.result(broken.key, "failed", epochs=(), metrics={}))
    sink.finish(say.result(pruned.key, "pruned", metrics={}))
    sink.close(60)
    sweep = read_sweep(layout)
    rows = [(row.label, row.status, row.metrics, row.params) for row in sweep.trials]
    return (sweep.info, rows, say.histories(layout, sweep, "train/loss"))


def test_postgresql_and_sqlite_hold_the_same(
    layout: Layout, invented: Any, say: Any, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(layout, invented, say)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    assert told(layout, invented, say) == expected
    password = postgres.split(":")[2].split("@")[0]
    assert password not in shown(postgres)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.replace(password, "wrong"))
    with pytest.raises(TrackingError, match="password authentication failed") as refused:
        connect(layout)
    assert "\n" not in str(refused.value)


def record(runs: Path, together: Any) -> None:
    """Begin to record in a new `runs/`, as one of several processes do."""
    layout = Layout(runs)
    together.wait()
    connect(layout)


def test_drivers_that_begin_at_once_on_an_empty_postgresql(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, _, place = postgres.partition("//")[2].partition("@")
    with psycopg.connect(f"postgresql://{owner}@{place}", autocommit=True) as database:
        database.execute("CREATE DATABASE empty")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{postgres.rpartition('/')[0]}/empty")
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    drivers = [context.Process(target=record, args=(tmp_path / str(number), together)) for number in range(3)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(120)
    assert [driver.exitcode for driver in drivers] == [0, 0, 0]


def test_a_database_that_this_account_may_not_use(
    layout: Layout, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    connect(layout)
    owner, _, place = postgres.partition("//")[2].partition("@")
    with psycopg.connect(f"postgresql://{owner}@{place}", autocommit=True) as database:
        database.execute("CREATE ROLE guest LOGIN PASSWORD 'let-me-in'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg://guest:let-me-in@{place}")
    with pytest.raises(
        TrackingError, match=r"refuses: .*permission denied for table .*\. Ask its owner for"
    ) as refused:
        connect(layout)
    assert "\n" not in str(refused.value)
    assert "let-me-in" not in str(refused.value)


def test_a_missing_driver_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://me:secret@127.0.0.1:1/x")
    with pytest.raises(TrackingError, match=r"needs the Python package 'psycopg'.*otkd\[postgres\]") as missing:
        connect(layout)
    assert "secret" not in str(missing.value)


def test_a_database_of_a_newer_mlflow(layout: Layout) -> None:
    with closing(sqlite3.connect(layout.database)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    with pytest.raises(TrackingError, match=r"database of a newer MLflow than .* Upgrade mlflow") as refused:
        connect(layout)
    assert "\n" not in str(refused.value)


def test_a_server_of_an_older_mlflow(
    layout: Layout, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    old = make_server("127.0.0.1", port, Response("2.22.1"), threaded=True)
    thread = threading.Thread(target=old.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    try:
        with pytest.raises(TrackingError, match=r"server of MLflow 2\.22\.1; otkd needs MLflow 3 or newer there"):
            connect(layout)
    finally:
        old.shutdown()
        thread.join()
        old.server_close()


@pytest.mark.usefixtures("backend")
def test_a_server_that_asks_for_a_login(
    layout: Layout, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with server(port, login="me:a-long-password"):
        with pytest.raises(
            TrackingError, match=r"a login\. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD .*, correct"
        ) as refused:
            connect(layout)
        assert "Start it" not in str(refused.value)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
        assert connect(layout).experiment


@pytest.mark.usefixtures("backend")
def test_a_server_that_lets_this_account_read_alone(
    layout: Layout, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    denied = r"refuses: .*403.*Permission denied.*\. Ask its owner for the right to write there, correct"
    with server(port, read_only=True), pytest.raises(TrackingError, match=denied):
        connect(layout)
