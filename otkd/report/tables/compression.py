"""How much smaller and quicker the student is than its teacher."""

from __future__ import annotations

import math

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report.frame import SIZES, baselines, pairs, students, teachers
from otkd.report.stats import DASH
from otkd.report.table import Table

TITLE = "Compression"
ORDER = 40

CAPTION = (
    "Parameters; multiply-adds of one image's forward pass; size of the fp32 weights on disk; latency of one image "
    "on one CPU thread (median over trials, measured while other work may have run). In brackets: the teacher's "
    "figure over this one. A method that deploys more than the student has a row of its own."
)
THROUGHPUT = (
    " Throughput: images a second of the teacher's own training and of the student's without a teacher, median over "
    "trials, where both were trained in this sweep; in brackets, the student's over the teacher's."
)
WORDS = dict(zip(SIZES, ("parameters", "multiply-adds", "size", "latency"), strict=True))
SPEED = names.IMAGES_PER_S


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table with teacher and student of each pair; none where no size is on record."""
    data = pd.DataFrame([record for pair in pairs(frame) for record in _records(frame, pair)])
    if data.empty or data[list(SIZES)].isna().all(axis=None):
        return []
    fast = data[SPEED].notna().any()
    words = WORDS | ({SPEED: "training throughput"} if fast else {})
    text = {"pair": data["pair"], "role": data["role"]}
    for size, word in words.items():
        ratios = zip(data[size], data[f"{size} ratio"], data["role"], strict=True)
        text[word] = [_cell(size, value, ratio, role) for value, ratio, role in ratios]
    shown = pd.DataFrame({name: list(cells) for name, cells in text.items()}, dtype=object)
    shown.index = pd.Index(data["network"], name="network", dtype=object)
    return [Table("compression", TITLE, CAPTION + (THROUGHPUT if fast else ""), shown, data)]


def _records(frame: pd.DataFrame, pair: str) -> list[dict[str, object]]:
    rows = students(frame)
    rows = rows[rows["pair"] == pair]
    own = teachers(frame, pair)
    teacher = {size: _first(own[size].median(), rows[names.TEACHER + size].median()) for size in SIZES}
    teacher[SPEED] = own[SPEED].median()
    whole = {f"{size} ratio": 1.0 for size in teacher}
    records = [{"pair": pair, "role": "teacher", "network": rows["teacher"].iloc[0], **teacher, **whole}]
    usual = rows[names.PARAMS].mode()
    known = rows.dropna(subset=[names.PARAMS])
    for params, alike in known.groupby(names.PARAMS) if len(known) else [(math.nan, rows)]:
        student = {size: alike[size].median() for size in SIZES}
        ratios = {f"{size} ratio": teacher[size] / student[size] if student[size] else math.nan for size in SIZES}
        student[SPEED] = alike.loc[alike["variant"] == baselines(rows).student, SPEED].median()
        ratios[f"{SPEED} ratio"] = student[SPEED] / teacher[SPEED] if teacher[SPEED] else math.nan
        extra = "" if usual.empty or params == usual[0] else f", {' and '.join(alike['method'].unique())}"
        network = f"{rows['student'].iloc[0]}{extra}"
        records.append({"pair": pair, "role": "student", "network": network, **student, **ratios})
    return records


def _first(*values: float) -> float:
    return next((value for value in values if not math.isnan(value)), math.nan)


def _cell(size: str, value: float, ratio: float, role: str) -> str:
    if math.isnan(value):
        return f"{DASH} (not on record)"
    shown = {
        names.BYTES: f"{value / 2**20:.2f} MiB",
        names.LATENCY_MS: f"{value:.2f} ms",
        SPEED: f"{value:.0f} images/s",
    }.get(size) or _count(value)
    return shown if role == "teacher" or math.isnan(ratio) else f"{shown} ({ratio:.2f}×)"


def _count(value: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f}"
