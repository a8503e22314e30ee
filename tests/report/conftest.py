"""Fixtures of the report's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib leaves a folder's helpers out of the path

from report_sweeps import full_sweep

from otkd.track.reader import SweepRecord


@pytest.fixture
def record() -> SweepRecord:
    """Two pairs, four methods, three seeds; `ot` of the first pair diverged once and misses one."""
    return full_sweep().record()
