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
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from sqlalchemy import Engine

log = logging.getLogger("otkd.track")

TAG_BEGUN = "otkd.begun"
"""Tag of a sweep's run: when it was last begun or continued, in seconds since 1970."""

OLDEST_SERVER = 3
"""MLflow's major version since which servers know models of their own (`LoggedModel`)."""

RUNS_PER_PAGE = 500
"""Runs that are asked for at once."""

PAGES = "http://127.0.0.1:5000"
"""Where `otkd ui` serves MLflow's pages unless told otherwise."""

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

FILE = "sqlite:///"
"""How the address of a file begins; its path follows."""

DATABASES = ("postgresql", "mysql")
"""Kinds of databases that are asked for over a network."""

MAKING_S = 120
"""Seconds that another driver may take for making the tables of a database."""

MAKING = 0x6F746B64
"""Number of the lock that it holds meanwhile."""

CHATTER = ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.models", "mlflow.pyfunc")
"""Loggers that report table creation, and as tracebacks errors which are raised as well."""


class Store(NamedTuple):
    """A tracking store that answers."""

    client: MlflowClient
    experiment: str
    """Id of the experiment."""
    uri: str


class Refusal(NamedTuple):
    """Why a store did not do what it was asked."""

    what: str
    """Follows the store's name."""
    way_out: str = ""
    """What to do about the store itself, as a command."""


def tracking_uri(layout: Layout) -> str:
    """`MLFLOW_TRACKING_URI`, or SQLite in `runs/mlflow.db`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(layout)


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
    misspelt = _misspelt(uri)
    if misspelt is not None:
        raise _told(uri, misspelt, layout)
    if not create and uri.startswith(FILE) and not Path(uri.removeprefix(FILE)).exists():
        raise TrackingError(
            f"nothing is recorded in {uri} yet. Run a sweep first (`otkd sweep FILE`), or name its --runs."
        )
    _quiet()
    try:
        _knock(uri)
        _find_folder(uri, layout)
        with _alone(uri):
            return _open(uri, layout, create)
    except TrackingError:
        raise
    except Exception as error:
        raise refused(uri, error, layout) from error


def refused(uri: str, error: Exception, layout: Layout) -> TrackingError:
    """What a person is told of a store that did not do what it was asked, with the way out."""
    return _told(uri, _refusal(error, uri), layout)


def own(store: Store, layout: Layout) -> bool:
    """Whether the store is this folder's own SQLite, of which no other driver makes use."""
    return store.uri == _own_uri(layout)


def begun(run: Run) -> float:
    """When a sweep was last begun, in seconds since 1970; of two sweeps of a store the later has the larger number."""
    return float(run.data.tags.get(TAG_BEGUN, run.info.start_time / 1000))


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
    if is_server(uri):
        print(f"MLFLOW_TRACKING_URI names a server, which has the pages: {shown(uri)}")
        return 0
    store = connect(layout, create=False)
    if _listening(port):
        raise TrackingError(f"port {port} is taken; name another with --port.")
    page = _page(store)
    print("starting MLflow …", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--default-artifact-root", layout.artifacts.resolve().as_uri()]
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}  # not among the arguments: it may hold a password
    # a session of its own, so that Ctrl-C reaches this process alone, which then ends the server without its tracebacks
    server = subprocess.Popen([*command, *places], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None and not _listening(port):
            sleep(0.2)
        if server.poll() is not None:
            words = f"MLflow's server ended by itself, with status {server.returncode}"
            raise TrackingError(f"{words}; `{' '.join(command)}` says why.")
        print(f"MLflow on http://127.0.0.1:{port}/{page} (Ctrl-C ends it)", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        return 0


def _page(store: Store) -> str:
    """Where the columns and charts that matter come first."""
    from otkd.track.views import keep_view, view_address

    keep_view(store)
    return view_address(store.experiment)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def search(store: Store, condition: str) -> list[Run]:
    """Every run of the experiment that fulfils an MLflow filter, newest first."""
    return list(pages(store, condition))


def pages(store: Store, condition: str) -> Iterator[Run]:
    """As `search`, with no more than a page of runs in memory: each brings its parameters and tags."""
    token: str | None = None
    order = ["attributes.start_time DESC"]
    while True:
        page = store.client.search_runs(
            [store.experiment], condition, max_results=RUNS_PER_PAGE, order_by=order, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def repository(store: Store, place: str) -> ArtifactRepository:
    """Where files go that are kept at an address; MLflow's client would read the whole run to find that."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=store.uri)


def tagged(tag: str, value: str, operator: str = "=") -> str:
    """The MLflow filter for runs with a tag; the value must be without quotes."""
    return f"tags.`{tag}` {operator} '{value}'"


def shown(uri: str) -> str:
    """The address without the passwords that it may hold: before its last `@`, or in its query."""
    if uri.startswith(FILE):
        return uri
    return re.sub(r"^([\w+.-]+:/*)?.*@", r"\1…@", re.sub(r"([?&][^=&]*(?:passw|pwd)[^=&]*=)[^&]*", r"\1…", uri))


def is_server(uri: str) -> bool:
    """The store is a server of MLflow's, which has the database and the artifacts behind it."""
    return uri.startswith(("http://", "https://"))


def served(uri: str) -> str:
    """Where MLflow's pages are: on the server (without the login in its address), or where `otkd ui` serves them."""
    if not is_server(uri):
        return PAGES
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def local_artifacts(uri: str) -> bool:
    """This process writes artifacts itself: there is no server to do it."""
    return not is_server(uri) and not uri.startswith("databricks")


def _told(uri: str, refusal: Refusal, layout: Layout) -> TrackingError:
    stop = "" if refusal.what.endswith(("…", ".")) else "."
    return TrackingError(f"the tracking store {shown(uri)} {refusal.what}{stop} {_ways_out(refusal.way_out, layout)}")


def _own_uri(layout: Layout) -> str:
    return f"{FILE}{layout.database.resolve()}"


def _quiet() -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _knock(uri: str) -> None:
    """Find out in seconds, not in MLflow's minutes of retries, that nobody is there."""
    if is_server(uri):
        _knock_server(uri)
    elif uri.startswith(DATABASES):
        _knock_database(uri)


def _knock_server(uri: str) -> None:
    try:
        urlopen(re.sub(r"//[^/]*@", "//", uri), timeout=ANSWER_S).close()
    except HTTPError:
        pass  # an answer
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow has settings of its own for certificates
            raise


def _knock_database(uri: str) -> None:
    _engine(uri).connect().close()


def _engine(uri: str) -> Engine:
    import sqlalchemy

    return sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": int(ANSWER_S)})


def _find_folder(uri: str, layout: Layout) -> None:
    """Have the folder that SQLite writes to: ours is made, one that the user names wrongly is not."""
    if uri == _own_uri(layout):
        layout.database.parent.mkdir(parents=True, exist_ok=True)
    elif uri.startswith(FILE) and not Path(uri.removeprefix(FILE)).parent.is_dir():
        folder = Path(uri.removeprefix(FILE)).parent
        way_out = _ways_out("Make it", layout)
        raise TrackingError(f"the tracking store {uri} cannot be opened: there is no folder {folder}. {way_out}")


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Inside, no other driver makes tables in the same PostgreSQL; MLflow itself fails where two do."""
    if not uri.startswith("postgresql"):
        yield
        return
    with _engine(uri).begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{MAKING_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MAKING})")
        yield


def _misspelt(uri: str) -> Refusal | None:
    """What is told of an address that MLflow would take for something else than is meant."""
    if uri.startswith("sqlite://") and not uri.startswith(FILE):
        return Refusal(f"names no file: that takes three slashes, {FILE}{uri.removeprefix('sqlite://')}")
    if "://" not in uri and uri != "databricks" and not uri.startswith("file:"):
        return Refusal(f"is a folder to MLflow; a server is http://127.0.0.1:5000, a file {FILE}FILE")
    if uri.startswith(DATABASES) and uri.partition("?")[0].count("@") > 1:
        return Refusal("has more than one @; in a name or password it is written %40")
    return None


def _complain_of_age(uri: str) -> None:
    """Raise a `TrackingError` when the server is of an MLflow that lacks what otkd needs."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    reply = http_request(
        get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=ANSWER_S, raise_on_status=False
    )
    version = re.match(r"(\d+)\.\d", reply.text) if reply.status_code == 200 else None
    if version and int(version[1]) < OLDEST_SERVER:
        raise TrackingError(
            f"{shown(uri)} is a server of MLflow {reply.text.strip()[:20]}; otkd needs MLflow {OLDEST_SERVER} or newer "
            f"there. Upgrade it, or unset MLFLOW_TRACKING_URI to record in runs/."
        )


def _open(uri: str, layout: Layout, create: bool) -> Store:
    from mlflow import MlflowClient

    if is_server(uri):
        _complain_of_age(uri)
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
    if create and local_artifacts(uri):
        _warn_of_artifacts(experiment, layout)
    return Store(client, experiment.experiment_id, uri)


def _warn_of_artifacts(experiment: Experiment, layout: Layout) -> None:
    """Say so where files will not lie in this `runs/`: an experiment keeps the place that it was made with."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    if not is_local_uri(experiment.artifact_location):
        return
    there, here = Path(local_file_uri_to_path(experiment.artifact_location)).resolve(), layout.artifacts.resolve()
    if there != here:
        log.warning(
            "artifacts go to %s, where experiment %r keeps them, and not to %s. "
            "For that, set MLFLOW_EXPERIMENT_NAME to a name of its own, or record on a server.",
            *(there, experiment.name, here),
        )


def _refusal(error: Exception, uri: str) -> Refusal:
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    cause, text = error.reason if isinstance(error, URLError) else error, _said(error)
    if isinstance(cause, UnsupportedModelRegistryStoreURIException):
        return Refusal(
            "is of no kind that MLflow knows; it takes sqlite:///FILE, postgresql+psycopg://HOST/NAME and https://HOST"
        )
    if isinstance(cause, ModuleNotFoundError):
        return Refusal(f"needs the Python package {cause.name!r}", _driver(uri))
    revision = re.search(r"found version (\w+)|locate revision identified by '(\w+)'", text)
    if revision:
        return _wrong_schema(revision[1] or revision[2], uri)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = textwrap.shorten(lines[0], 300, placeholder=" …") if lines else type(error).__name__
    return _absence(cause, text, uri) or _forbidden(text, said)


def _absence(cause: object, text: str, uri: str) -> Refusal | None:
    """What is told of a store that is not there; a file is not started."""
    way_out = "" if uri.startswith("sqlite") else "Start it"
    if isinstance(cause, TimeoutError) or "timeout expired" in text:
        return Refusal(f"did not answer within {ANSWER_S:g} s", way_out)
    if "Connection refused" in text:
        return Refusal("cannot be reached (Connection refused)", way_out)
    if isinstance(cause, OSError):
        return Refusal(f"cannot be reached ({cause.strerror or cause})", way_out)
    return None


def _forbidden(text: str, said: str) -> Refusal:
    """What is told of a store that is there and does not want to."""
    if "error code 401" in text:
        return Refusal("asks for a login", "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as it knows them")
    forbidden = "error code 403" in text or "permission denied" in text
    return Refusal(f"refuses: {said}", "Ask its owner for the right to write there" if forbidden else "")


def _said(error: BaseException) -> str:
    """What the database said, if anything; else what was made of it on the way."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "orig", None):
            return str(cause.orig)  # type: ignore[attr-defined]  # of any error of SQLAlchemy's
        cause = cause.__cause__
    return str(error)


def _driver(uri: str) -> str:
    return "Install it (`uv pip install 'otkd[postgres]'`)" if uri.startswith("postgres") else "Install it"


def _wrong_schema(revision: str, uri: str) -> Refusal:
    """A database of another MLflow: of an older one if this one knows its revision."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.version import VERSION

    try:
        ScriptDirectory.from_config(_get_alembic_config(db_url="")).get_revision(revision)
    except CommandError:
        return Refusal(f"is a database of a newer MLflow than {VERSION}, which is installed here", "Upgrade mlflow")
    return Refusal("is a database of an older MLflow", f"Keep a copy of it and run `mlflow db upgrade {shown(uri)}`")


def _ways_out(nearest: str, layout: Layout) -> str:
    """What a person can do; `nearest` comes first, where there is such a way."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return f"{nearest or 'Repair or move it'}, or name another --runs."
    correct = f"{nearest}, correct" if nearest else "Correct"
    return f"{correct} MLFLOW_TRACKING_URI, or unset MLFLOW_TRACKING_URI to record in {layout.database}."
