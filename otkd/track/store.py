"""Where MLflow keeps its records, and how to get hold of it.

`MLFLOW_TRACKING_URI` names the store; without it that is SQLite in `runs/mlflow.db`, with artifacts in
`runs/artifacts`. `MLFLOW_EXPERIMENT_NAME` names the experiment, `otkd` by default. MLflow is imported by the first call
that needs it, never by importing this module.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG_BEGUN = "otkd.begun"
"""Tag of a sweep's run: when it was last begun or continued, in seconds since 1970."""

ANSWER_S = 5.0
"""Seconds that an HTTP server may take for its first answer."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the sink retries by itself, and says so
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Settings of MLflow that hold where the environment sets none of its own."""

CHATTER = ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.models", "mlflow.pyfunc")
"""Loggers that report table creation, and as tracebacks errors which are raised as well."""


class Store(NamedTuple):
    """A tracking store that answers."""

    client: MlflowClient
    experiment: str
    """Id of the experiment."""
    uri: str


def tracking_uri(layout: Layout) -> str:
    """`MLFLOW_TRACKING_URI`, or SQLite in `runs/mlflow.db`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{layout.database.resolve()}"


def experiment_name() -> str:
    """`MLFLOW_EXPERIMENT_NAME`, or `otkd`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "otkd"


def connect(layout: Layout, *, create: bool = True) -> Store:
    """Open the tracking store, with the experiment made where it is missing.

    Args:
        create: make what is missing; False only looks.

    Raises:
        TrackingError: it does not answer (within about ten seconds), refuses, or (`create=False`) holds nothing yet.
    """
    uri = tracking_uri(layout)
    if not create and uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise TrackingError(
            f"nothing is recorded in {uri} yet. Run a sweep first (`otkd sweep FILE`), or name its --runs."
        )
    _quiet()
    try:
        _knock(uri)
        store = _open(uri, layout, create)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"the tracking store {shown(uri)} {_refusal(error)} {_ways_out(layout)}") from error
    return store


def answers(store: Store) -> bool:
    """Whether the store can be read now."""
    try:
        _knock(store.uri)
        store.client.get_experiment(store.experiment)
    except Exception:
        return False
    return True


def serve_ui(layout: Layout, port: int) -> int:
    """Serve MLflow's pages on 127.0.0.1 until Ctrl-C; a tracking server of the user's has pages of its own.

    Returns:
        The server's exit status.

    Raises:
        TrackingError: nothing is recorded yet, the store refuses, or the port is taken.
    """
    uri = tracking_uri(layout)
    if uri.startswith(("http://", "https://")):
        print(f"MLFLOW_TRACKING_URI names a server, which has the pages: {shown(uri)}")
        return 0
    experiment = connect(layout, create=False).experiment
    if _listening(port):
        raise TrackingError(f"port {port} is taken; name another with --port.")
    print("starting MLflow …", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", uri, "--default-artifact-root", layout.artifacts.resolve().as_uri()]
    # a session of its own, so that Ctrl-C reaches this process alone, which then ends the server without its tracebacks
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen([*command, *places], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None and not _listening(port):
            sleep(0.2)
        print(f"MLflow on http://127.0.0.1:{port}/#/experiments/{experiment}/runs (Ctrl-C ends it)", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        return 0


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def search(store: Store, condition: str) -> list[Run]:
    """Every run of the experiment that fulfils an MLflow filter, newest first."""
    found: list[Run] = []
    token: str | None = None
    order = ["attributes.start_time DESC"]
    while True:
        page = store.client.search_runs(
            [store.experiment], condition, max_results=1000, order_by=order, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def tagged(tag: str, value: str, operator: str = "=") -> str:
    """The MLflow filter for runs with a tag; the value must be without quotes."""
    return f"tags.`{tag}` {operator} '{value}'"


def shown(uri: str) -> str:
    """The address without a password that it may hold."""
    return re.sub(r"//[^/@]*@", "//…@", uri)


def local_artifacts(uri: str) -> bool:
    """This process writes artifacts itself: there is no server to do it."""
    return not uri.startswith(("http://", "https://", "databricks"))


def _quiet() -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _knock(uri: str) -> None:
    """Find out in seconds, not in MLflow's minutes of retries, that no HTTP server is there."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urlopen(re.sub(r"//[^/@]*@", "//", uri), timeout=ANSWER_S).close()
    except HTTPError:
        pass  # an answer
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow has settings of its own for certificates
            raise


def _open(uri: str, layout: Layout, create: bool) -> Store:
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    name = experiment_name()
    experiment = client.get_experiment_by_name(name)
    if experiment is None and not create:
        raise TrackingError(
            f"{shown(uri)} has no experiment {name!r} yet. Run a sweep first, or set MLFLOW_EXPERIMENT_NAME."
        )
    if experiment is None:
        place = layout.artifacts.resolve().as_uri() if local_artifacts(uri) else None
        return Store(client, client.create_experiment(name, artifact_location=place), uri)
    if experiment.lifecycle_stage == "deleted":
        way = f"Restore it (`mlflow experiments restore --experiment-id {experiment.experiment_id}`)"
        raise TrackingError(
            f"{shown(uri)}: experiment {name!r} was deleted. {way}, or set MLFLOW_EXPERIMENT_NAME to a new name."
        )
    return Store(client, experiment.experiment_id, uri)


def _refusal(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"did not answer within {ANSWER_S:g} s."
    if isinstance(cause, OSError):
        return f"cannot be reached ({cause.strerror or cause})."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"refuses: {lines[0][:300] if lines else type(error).__name__}"


def _ways_out(layout: Layout) -> str:
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return f"Start it, correct MLFLOW_TRACKING_URI, or unset MLFLOW_TRACKING_URI to record in {layout.database}."
    return "Repair or move it, or name another --runs."
