"""What training with each method costs: time, overhead against KD, memory, energy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import choice, stats
from otkd.report.frame import PROVENANCE, pairs, students, variants
from otkd.report.table import Table, best, grouped

TITLE = "Cost of training"
ORDER = 30

FIGURES = {names.IMAGES_PER_S: ("images / s", 0), names.PEAK_MIB: ("peak memory, MiB", 0)}
WHOLE = {names.WALL_S: ("h / trial", "trial_h"), names.TRIAL_J: ("Wh / trial", "trial_wh")}
"""Of a whole trial, in seconds and joules: both become hours."""

MEMORY = (
    "Peak memory is, on a CPU, the worker process's peak so far: it never falls, and workers are used again, so trials "
    "that the same worker trained earlier count in it; on CUDA it is the device allocator's peak of the cohort. Trials "
    "of a cohort share it, so it does not tell methods of one cohort apart."
)
"""What the memory column measures."""
HOURS = (
    "h / trial: the mean hours of training of a finished trial as if it had trained alone, with what its terms learn "
    "before the first epoch and with that epoch, in which code is loaded and compiled (s / epoch leaves it out), but "
    "without measuring and saving. They are no GPU-hours: which share of a device a trial had is not on record."
)
"""What the column of hours measures."""
ENERGY = (
    "Wh / trial: the mean energy of a finished trial's epochs as if it had trained alone: their seconds times the mean "
    "power that the device's own counter showed while the cohort trained them. It is that of the GPU, or of all "
    "packages of the CPU, alone: of neither the rest of the machine nor other devices; what else ran on the device at "
    "the time counts in it, and what the terms learn before the first epoch does not. Where fewer trials have it on "
    "record than have a time, their n stands beside it."
)
"""What the column of energy measures."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table; none where no student has a time on record."""
    if not students(frame)[names.EPOCH_S].notna().any():
        return []
    columns: dict[tuple[str, str], Sequence[str]] = {}
    bold: set[tuple[int, int]] = set()
    for pair in pairs(frame):
        by_method, base = costs(frame, pair), reference(frame, pair)
        cells = list(by_method.values())
        summaries = [cell.summary for cell in cells]
        bold |= best(len(columns), summaries, lowest=True)
        expected, n = stats.header_n(summaries)
        texts = [stats.explain(cell.summary, cell.lacks, expected, digits=_digits(summaries)) for cell in cells]
        columns[pair, f"s / epoch, {n}"] = texts
        if base is not None:
            ratios = [ratio(cell, by_method[base]) for cell in cells]
            columns[pair, f"× {base}"] = [stats.DASH if math.isnan(ratio) else f"{ratio:.2f}×" for ratio in ratios]
        columns |= _others(frame, pair) | _whole(frame, pair, summaries)
    text = grouped(columns, variants(frame), "method")
    return [Table("cost", TITLE, _caption(frame), text, _data(frame), frozenset(bold))]


def reference(frame: pd.DataFrame, pair: str) -> str | None:
    """What overhead is measured against on a pair: the chosen baseline, KD, or the student alone without KD."""
    known = choice.against(frame, pair)
    return known.get(choice.CHOSEN) or known.get("kd") or known.get("student")


def cost(frame: pd.DataFrame, variant: str, pair: str, column: str = names.EPOCH_S) -> stats.Cell:
    """A cost of one method on one pair, by seed."""
    chosen = (frame["role"] == "student") & (frame["variant"] == variant) & (frame["pair"] == pair)
    return stats.cell(frame.loc[chosen, ["seed", "status", column]], column)


def costs(frame: pd.DataFrame, pair: str, column: str = names.EPOCH_S) -> dict[str, stats.Cell]:
    """A cost of every method of the sweep on one pair, by seed."""
    rows = frame[(frame["role"] == "student") & (frame["pair"] == pair)]
    return stats.cells(rows, variants(frame), column)


def ratio(left: stats.Cell, right: stats.Cell) -> float:
    """Mean over mean, over the seeds that both have; NaN where there are none."""
    left_S, right_S = stats.common(left, right)
    return float(left_S.mean() / right_S.mean()) if len(left_S) else math.nan


def _others(frame: pd.DataFrame, pair: str) -> dict[tuple[str, str], list[str]]:
    columns = {}
    for column, (words, digits) in FIGURES.items():
        means = [cell.summary.mean for cell in costs(frame, pair, column).values()]
        if any(not math.isnan(mean) for mean in means):
            columns[pair, words] = [stats.number(mean, digits) for mean in means]
    return columns


def _whole(frame: pd.DataFrame, pair: str, seconds: list[stats.Summary]) -> dict[tuple[str, str], list[str]]:
    """Hours and watt-hours of a whole trial, with n where it is another than that of `seconds`; columns on record."""
    columns = {}
    for column in filter(frame.__contains__, WHOLE):
        summaries = [_in_hours(cell) for cell in costs(frame, pair, column).values()]
        if any(summary.n for summary in summaries):
            digits = _digits(summaries)
            columns[pair, WHOLE[column][0]] = [
                stats.number(own.mean, digits) + (f" (n = {own.n})" if 0 < own.n != timed.n else "")
                for own, timed in zip(summaries, seconds, strict=True)
            ]
    return columns


def _in_hours(cell: stats.Cell) -> stats.Summary:
    return stats.summarise(cell.by_seed / 3600)


def _digits(summaries: list[stats.Summary]) -> int:
    """Enough decimals for three figures of the quickest method."""
    lowest = min((summary.mean for summary in summaries if summary.n and summary.mean > 0), default=1.0)
    return max(0, min(4, 2 - math.floor(math.log10(lowest))))


def _caption(frame: pd.DataFrame) -> str:
    column = PROVENANCE + "device"
    devices = students(frame)[column].dropna().unique() if column in frame else []
    where = f"Measured on {' and '.join(map(str, devices))}." if len(devices) else "The device is not on record."
    several = " Times from different devices cannot be compared." if len(devices) > 1 else ""
    bases = list(dict.fromkeys(base for pair in pairs(frame) if (base := reference(frame, pair))))
    ratios = " and ".join(f"× {base}" for base in bases)
    ratio = f" {ratios}: the ratio of mean times over the seeds that both finished." if bases else ""
    hours = f" {HOURS}" if students(frame)[names.WALL_S].notna().any() else ""
    energy = f" {ENERGY}" if names.TRIAL_J in frame and students(frame)[names.TRIAL_J].notna().any() else ""
    return (
        "Seconds per epoch are the training time as if a trial had trained alone: its own steps and the whole of the "
        "teacher's forward passes and data that it shares with its cohort; the median over epochs (without the first, "
        "in which code is loaded and compiled, where there are others), then mean ± sample standard deviation over n "
        f"seeds.{ratio} {MEMORY}{hours}{energy} Trials that ran side by side slow each other. "
        f"{where}{several} Bold: lowest mean.{choice.first_listed(frame, bases)}"
    )


def _data(frame: pd.DataFrame) -> pd.DataFrame:
    records = []
    for pair in pairs(frame):
        base = reference(frame, pair)
        seconds, rates, memory = (costs(frame, pair, column) for column in (names.EPOCH_S, *FIGURES))
        whole = {WHOLE[column][1]: costs(frame, pair, column) for column in filter(frame.__contains__, WHOLE)}
        for name, cell in seconds.items():
            numbers = {f"epoch_s_{part}": value for part, value in cell.summary._asdict().items()}
            over = {"overhead": ratio(cell, seconds[base]), "overhead_against": base} if base else {}
            means = {"images_per_s": rates[name].summary.mean, "peak_mib": memory[name].summary.mean}
            means |= {column: _in_hours(cells[name]).mean for column, cells in whole.items()}
            records.append({"pair": pair, "method": name, **numbers, **over, **means, "not_counted": cell.lacks})
    return pd.DataFrame(records)
