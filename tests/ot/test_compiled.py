"""Compiled code is kept where that is possible, and made anew where it is not."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import numpy as np
from otkd.ot import entropic_points
for name in sys.argv[1:]:
    moved, *_ = entropic_points._centred(np.ones((1, 2, 3), name), np.ones((1, 4, 3), name), True)
    assert not moved.any()
print(sum(entropic_points._centred.stats.cache_hits.values()))
"""
FULL = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))\n"
SLOW = """
import time
from numba.core.caching import IndexDataCacheFile
load = IndexDataCacheFile._load_index
def slow(self):
    found = load(self)
    time.sleep(1)
    return found
IndexDataCacheFile._load_index = slow
"""
"""Makes the time long in which two processes that save would take each other's file names."""


def start(*names: str, script: str = SCRIPT, **environment: str) -> subprocess.Popen[str]:
    """A fresh process that calls one function, in the precisions `names`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-c", script, *names], env={**os.environ, **environment}, text=True, **pipes
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, bool]:
    """How often it found the code of its function, and whether it said that it compiles."""
    out, said = process.communicate()
    assert process.returncode == 0, said
    return int(out), "compiles its solvers" in said


def test_code_is_made_once(tmp_path: Path) -> None:
    kept = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert [ended(start("float64", **kept)) for _ in range(2)] == [(0, True), (1, False)]


def test_without_a_place_for_it_code_is_made_each_time(tmp_path: Path) -> None:
    """Nobody, not even root, may make a folder below a file: so it is where everything is mounted read-only."""
    (tmp_path / "file").touch()
    nowhere = {
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
        "NUMBA_CACHE_DIR": str(tmp_path / "file/cache"),
    }
    assert [ended(start("float64", **nowhere)) for _ in range(2)] == [(0, True)] * 2


def test_settings_that_numba_refuses_are_not_passed_over() -> None:
    process = start("float64", NUMBA_CACHE_LOCATOR_CLASSES="NoSuchLocator")
    assert "NoSuchLocator" in process.communicate()[1]
    assert process.returncode != 0


def test_code_that_cannot_be_written_is_used_all_the_same(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    full = [ended(start("float64", script=FULL + SCRIPT, NUMBA_CACHE_DIR=str(tmp_path))) for _ in range(2)]
    assert full == [(0, True)] * 2
    assert not list(tmp_path.rglob("*.nbc"))


def test_code_of_an_earlier_source_is_not_taken_for_new(tmp_path: Path) -> None:
    """The source changes, and the disk is full when the new code comes."""
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}

    def run(number: int, before: str = "") -> int:
        source = f"from otkd.ot.compiled import outer\n@outer\ndef f(x):\n    return x + {number}\n"
        if not (tmp_path / "changing.py").exists() or (tmp_path / "changing.py").read_text() != source:
            (tmp_path / "changing.py").write_text(source)
        return ended(start(script=before + "import changing; print(changing.f(1))", **kept))[0]

    assert [run(10), run(2000, FULL), run(2000), run(2000)] == [11, 2001, 2001, 2001]


def test_processes_that_compile_at_once_do_not_mix_up_their_code(tmp_path: Path) -> None:
    kept = {"NUMBA_CACHE_DIR": str(tmp_path)}
    for process in [start(name, script=SLOW + SCRIPT, **kept) for name in ("float32", "float64")]:
        assert ended(process) == (0, True)
    assert ended(start("float32", "float64", **kept)) == (2, False)
