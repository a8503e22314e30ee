"""How far a student does what its teacher does: top-1 agreement and divergence of probabilities, on test images."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import stats
from otkd.report.choice import FIGURES
from otkd.report.frame import budget, pairs, students, variants
from otkd.report.table import Table, grouped
from otkd.report.tables.accuracy import explained

TITLE = "Agreement with the teacher"
ORDER = 45

COLUMNS = {
    names.TEST_AGREEMENT: "agreement %",
    names.TEST_KL: "KL, nats",
    names.TEST_TOP1: "test top-1 %",
}
"""Figure → head of its column; the first two are of the teacher, and the last stands beside them."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table; none where no student's agreement is on record."""
    rows = students(frame)
    there = [figure for figure in COLUMNS if rows[names.test("last", figure)].notna().any()]
    if there in ([], [names.TEST_TOP1]):
        return []
    columns: dict[tuple[str, str], Sequence[str]] = {}
    records: dict[tuple[str, str], dict[str, object]] = {}
    for pair in pairs(frame):
        own = rows[rows["pair"] == pair]
        for figure in there:
            cells = stats.cells(own, variants(frame), names.test("last", figure))
            expected, n = stats.header_n(cell.summary for cell in cells.values())
            columns[pair, f"{COLUMNS[figure]}, last epoch, {n}"] = [
                explained(cell, expected, FIGURES[figure].digits) for cell in cells.values()
            ]
            for name, cell in cells.items():
                record = records.setdefault((pair, name), {"pair": pair, "method": name})
                record |= {f"{figure}_{part}": value for part, value in cell.summary._asdict().items()}
    text = grouped(columns, variants(frame), "method")
    return [Table("agreement", TITLE, _caption(frame, there), text, pd.DataFrame(list(records.values())))]


def _caption(frame: pd.DataFrame, there: Sequence[str]) -> str:
    divergence = (
        " KL: divergence of the student's probabilities from the teacher's, KL(teacher ‖ student) at temperature 1, "
        "mean over test images; lower is closer."
    )
    return (
        "Agreement: share of test images on which student and teacher name the same class, right or wrong, with the "
        f"last epoch's weights; mean ± sample standard deviation over n seeds.{divergence * (names.TEST_KL in there)} "
        f"High accuracy with low agreement is a student that found its own way. {budget(frame)}"
    )
