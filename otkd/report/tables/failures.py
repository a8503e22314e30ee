"""Trials that did not finish, and why."""

from __future__ import annotations

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report.table import Table

TITLE = "What did not finish"
ORDER = 80

COLUMNS = ("pair", "seed", "status", "reason")


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One row per teacher, and per student that is compared, without a result; none where all finished."""
    rows = frame[frame["role"].isin(["teacher", "student"]) & (frame["status"] != "finished")]
    if rows.empty:
        return []
    text = rows.set_index("variant")[list(COLUMNS)].astype(str)
    text.index.name = "method"
    data = rows[["key", "variant", *COLUMNS, "run_id"]].rename(columns={"variant": "method"})
    return [Table("failures", TITLE, _caption(len(text)), text.astype(object), data)]


def _caption(count: int) -> str:
    what = "1 trial has" if count == 1 else f"{count} trials have"
    return (
        f"{what} no result. Diverged: the loss became not a number. Failed: an error in every attempt. Pruned: stopped "
        "early by the search. Running or missing: not at its end when this was written. None of them counts in a mean."
    )
