"""What keeps the report of thousands of trials quick changes nothing in it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine
from report_sweeps import full_sweep, histories

from otkd.core import names
from otkd.report import frame, render, stats


def test_a_figure_is_laid_out_once_for_all_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PDF keeps what was found for the PNG."""
    record = full_sweep().record()
    calls: list[Any] = []
    execute = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *given: [calls.append(given[1]), execute(*given)])
    contents = render.compose(record, frame.epochs(record, histories(record)))
    pictures = [picture for section in contents.sections for picture in section.pictures]
    assert len(pictures) > 2
    assert len(calls) == len({id(figure) for figure in calls}) == len(pictures)


def test_all_cells_at_once_are_those_of_one_variant_after_the_other() -> None:
    sweep = full_sweep()
    sweep.student("kd", status="diverged", seed=3)
    rows = frame.students(frame.trials(sweep.record()))
    column = names.test("last", names.TEST_TOP1)
    found = stats.cells(rows, [*frame.variants(rows), "unknown"], column)
    assert found["kd"].lacks == "diverged ×1"
    assert (found["unknown"].summary.n, found["unknown"].lacks) == (0, "")
    for name in frame.variants(rows):
        alone = stats.cell(rows[rows["variant"] == name], column)
        assert found[name].by_seed.equals(alone.by_seed)
        assert found[name].lacks == alone.lacks


def test_statistics_are_not_loaded_before_something_is_tested() -> None:
    """A report that is there already is shown without them."""
    code = "import sys, otkd.report.render; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
