"""Accuracies that others have published for the sweep's pairs, with their selection rule and source."""

from __future__ import annotations

import re

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import references
from otkd.report.frame import students
from otkd.report.stats import number
from otkd.report.table import Table

TITLE = "Published figures"
ORDER = 50

CAPTION = (
    "Set apart on purpose: these are others' figures, from the sources named. Their budget, recipe, teacher weights, "
    "number of runs and selection rule differ from this sweep's and from one another's (“best epoch on test” picks "
    "by test images and reads high). Networks and data are matched by name. Compare differences within one source, "
    "not across."
)


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table with the rows of known pairs; none where no pair is known.

    `frame.attrs["references"]` may name a CSV with further rows.
    """
    known = references.load(frame.attrs.get("references"))
    known = known[known["dataset"].map(_plain) == _plain(info.dataset)]
    parts = [_of_pair(known, *pair) for pair in _pairs(frame)]
    found = pd.concat(parts) if parts else known[:0]
    if found.empty:
        return []
    text = found[["pair", "selection", "source"]].astype(object)
    text.insert(1, "top-1 %", [number(value) for value in found["top1"]])
    text.index = pd.Index(found["method"], name="method", dtype=object)
    return [Table("published", TITLE, CAPTION, text, found.reset_index(drop=True))]


def _pairs(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    rows = students(frame).drop_duplicates("pair")
    return list(zip(rows["pair"], rows["teacher"], rows["student"], strict=True))


def _of_pair(known: pd.DataFrame, pair: str, teacher: str, student: str) -> pd.DataFrame:
    same = (known["teacher"].map(_plain) == _plain(teacher)) & (known["student"].map(_plain) == _plain(student))
    return known[same].drop_duplicates().assign(pair=pair)


def _plain(name: str) -> str:
    """`shufflenet_v1` and `ShuffleV1` are one network."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).replace("shufflenet", "shuffle")
