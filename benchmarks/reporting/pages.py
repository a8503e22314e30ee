"""The live page of a large sweep: each view, as the server's first visitor waits for it and as the next ones do."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.reporting.store import Size
from benchmarks.reporting.times import ROOT, paths
from benchmarks.training.speed import shown
from benchmarks.training.targets import Target
from benchmarks.transport.tables import Table
from otkd.core.layout import Layout

ROUNDS = 5

LEGEND = """\
page s: a view for a new visitor, by Streamlit's AppTest, which runs the page without a server and a browser; the median
of rounds in a process that has the sweep in memory. first visitor s: the same in a process that has imported and read
nothing; learning curves come from the report's cache."""

TARGETS = (Target("a view of the live page takes 2 s at most", "page s", 2, most=True),)


def measure(layout: Layout, size: Size) -> Iterator[Table]:
    """A process for each view."""
    from dashboards.page import VIEWS

    yield shown(
        f"the live page of {size.trials} trials, {size.epochs} epochs", [opened(layout, view) for view in VIEWS]
    )


def opened(layout: Layout, view: str) -> dict[str, Any]:
    """Seconds of the first visit, and the median of those that follow.

    Raises:
        RuntimeError: the page has failed, with what it said.
    """
    command = [sys.executable, "-m", "benchmarks.reporting.visit", str(1 + ROUNDS), view]
    environment = {**os.environ, "OTKD_RUNS": str(layout.root), "PYTHONPATH": paths()}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{view}:\n{done.stderr[-2000:]}")
    first, *rest = json.loads(done.stdout.splitlines()[-1])
    return {"view": view, "first visitor s": first, "page s": statistics.median(rest)}
