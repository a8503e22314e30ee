"""The report of a large sweep from an empty cache, again with nothing new, and after some trials were gone on with.

Each is a command of its own, `otkd report`, from its start to its end, with what Python needs to begin.
"""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.reporting.store import Size
from benchmarks.training.speed import shown
from benchmarks.training.startup import kibibytes
from benchmarks.training.targets import Target
from benchmarks.transport.tables import Table
from otkd.core.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from pathlib import Path
peak = Path(sys.argv.pop())
from otkd.cli import main
try:
    main()
finally:
    peak.write_text(Path("/proc/self/status").read_text() if sys.platform == "linux" else "")
"""
AGAIN = 10
"""Trials that are gone on with before the last report."""

LEGEND = """\
s: from the start of `otkd report` to its end. MiB: its largest memory. again: ten trials have ended anew since."""

TARGETS = (
    Target("the first report takes a minute at most", "first s", 60, most=True),
    Target("a report with nothing new takes 5 s at most", "nothing new s", 5, most=True),
    Target("a report takes 2 GiB at most", "MiB", 2048, most=True),
)


def measure(layout: Layout, size: Size) -> Iterator[Table]:
    """Three reports in turn."""
    records: list[dict[str, Any]] = [
        {"report": "first", **called(layout, "first s")},
        {"report": "nothing new", **called(layout, "nothing new s")},
    ]
    touch(layout)
    records.append({"report": "again", **called(layout, "again s")})
    columns = ("report", "first s", "nothing new s", "again s", "MiB")
    title = f"otkd report of {size.trials} trials, {size.epochs} epochs, 12 metrics, in SQLite"
    yield shown(title, [{name: record.get(name) for name in columns} for record in records])


def called(layout: Layout, column: str) -> dict[str, float]:
    """Have `otkd report` do it.

    Raises:
        RuntimeError: it has failed, with what it said.
    """
    peak = layout.root / "peak"
    command = [sys.executable, "-c", CODE, "report", "--runs", str(layout.root), str(peak)]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths()})
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"the report failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return {column: seconds, "MiB": kibibytes(peak).get("VmHWM", math.nan) / 1024}


def paths() -> str:
    """Where a process of its own finds otkd."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def touch(layout: Layout) -> None:
    """Some runs end again, a second later."""
    some = f"SELECT run_uuid FROM tags WHERE key = 'otkd.kind' AND value = 'student' LIMIT {AGAIN}"
    with closing(sqlite3.connect(layout.database)) as database, database:
        database.execute(f"UPDATE runs SET end_time = end_time + 1000 WHERE run_uuid IN ({some})")
