"""Start the page on 127.0.0.1: `make dashboard`, or `python -m dashboards --runs runs --port 8501`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from pathlib import Path

APP = Path(__file__).with_name("app.py")
PORT = 8501
SETTINGS = {
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
}
"""Streamlit's settings: listens here alone, opens no browser, watches no files, reports to nobody."""
HOSTS = ("127.0.0.1", "localhost")
"""Names that a browser may reach the page by, so that no other site can have one of its own lead here."""


def command(port: int) -> list[str]:
    """How Streamlit is started."""
    settings = [f"--{name}={value}" for name, value in {**SETTINGS, "server.port": str(port)}.items()]
    hosts = [f"--server.allowedHosts={name}" for name in HOSTS]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *settings, *hosts]


def environment(runs: Path) -> dict[str, str]:
    """What the page finds its runs and its own modules by."""
    root = str(APP.parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OTKD_RUNS": str(runs.resolve()), "PYTHONPATH": path}


def main() -> None:
    """Become Streamlit's server, so that Ctrl-C and SIGTERM reach it."""
    parser = argparse.ArgumentParser(prog="dashboard", description="The live page of a sweep, on 127.0.0.1.")
    runs = Path(os.environ.get("OTKD_RUNS", "runs"))
    parser.add_argument("--runs", type=Path, default=runs, help="where state, records and reports lie")
    parser.add_argument("--port", type=int, default=PORT, help=f"by default {PORT}")
    given = parser.parse_args()
    if importlib.util.find_spec("streamlit") is None:
        raise SystemExit("dashboard: Streamlit is not installed here. Install it: uv pip install 'otkd[dashboard]'")
    if _is_taken(given.port):
        raise SystemExit(f"dashboard: port {given.port} is taken; name another with --port.")
    os.execve(sys.executable, command(given.port), environment(given.runs))


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
