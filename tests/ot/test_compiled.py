"""Compiled code is kept where that is possible, and made anew where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np
from otkd.ot import entropic_points
moved, *_ = entropic_points._centred(np.ones((1, 2, 3)), np.ones((1, 4, 3)), True)
assert not moved.any()
print(sum(entropic_points._centred.stats.cache_hits.values()))
"""


def hits(**environment: str) -> int:
    """How often a fresh process finds the code of a function that it calls once."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_code_is_made_once(tmp_path: Path) -> None:
    assert [hits(NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)] == [0, 1]


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/null")
def test_without_a_place_for_it_code_is_made_each_time() -> None:
    """The folder cannot be made, as where everything is mounted read-only."""
    nowhere = {"NUMBA_CACHE_DIR": "/dev/null/cache", "NUMBA_CACHE_LOCATOR_CLASSES": "EnvironmentCacheLocator"}
    assert [hits(**nowhere) for _ in range(2)] == [0, 0]
