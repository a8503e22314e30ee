"""Which classes a method recognises better, and which worse, than its baselines."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import choice, stats
from otkd.report.files import NONE, PER_CLASS, ClassCount, Files, by_label, texts
from otkd.report.frame import pairs, students, variants
from otkd.report.inference import DIGITS
from otkd.report.table import Table, slug

TITLE = "Accuracy by class"
ORDER = 46

MOST = 5
"""Gains of a method that are shown, and losses."""
SHARE = 3
"""Of few classes no more than one in so many is shown as a gain, and as many as a loss."""


class ByClass(NamedTuple):
    """One method on one pair."""

    classes: pd.DataFrame
    """By label: `class` (the name), `images`."""
    top1: dict[int, pd.Series]
    """Seed → accuracy by label, in percent; NaN where a class has no image."""


def table(frame: pd.DataFrame, info: SweepInfo, files: Files = NONE) -> list[Table]:
    """A table per pair and baseline; none without a baseline, or where its trials have no figures by class."""
    made = []
    for pair in pairs(frame):
        known = list(dict.fromkeys(choice.against(frame, pair).values()))
        found = by_class(frame, pair, files) if known else {}
        for place, base in enumerate(known):
            names = [name for name in variants(frame) if name not in known[: place + 1]]
            parts = {name: differences(found[name], found[base]) for name in names if {name, base} <= found.keys()}
            parts = {name: part for name, part in parts.items() if part["n"].any()}
            lacking = [name for name in names if name not in parts]
            made += [_table(frame, pair, base, parts, lacking)] if parts else []
    return made


def by_class(frame: pd.DataFrame, pair: str, files: Files) -> dict[str, ByClass]:
    """Method → its figures, of every finished trial that has some."""
    rows = students(frame)
    rows = rows[(rows["pair"] == pair) & (rows["status"] == "finished")]
    found: dict[str, ByClass] = {}
    for name, seed, text in zip(rows["variant"], rows["seed"], texts(files, rows["key"], PER_CLASS), strict=True):
        counts = by_label(text)
        if counts:
            found.setdefault(name, ByClass(_classes(counts), {})).top1[seed] = _top1(counts)
    return found


def _classes(counts: list[ClassCount]) -> pd.DataFrame:
    return pd.DataFrame({"class": [one.name for one in counts], "images": [one.images for one in counts]})


def _top1(counts: list[ClassCount]) -> pd.Series:
    return pd.Series([100 * one.right / one.images if one.images else math.nan for one in counts])


def differences(method: ByClass, base: ByClass) -> pd.DataFrame:
    """A row per class: mean, std and n of the method's accuracy less the baseline's, over the seeds that both have."""
    seeds = [seed for seed in method.top1 if seed in base.top1]
    base_SK, method_SK = (pd.DataFrame([found.top1[seed] for seed in seeds]) for found in (base, method))
    delta_SK = (method_SK - base_SK).round(DIGITS)
    found = {label: stats.summarise(delta_SK[label]) if seeds else stats.summarise([]) for label in base.classes.index}
    numbers = pd.DataFrame(found.values(), columns=list(stats.Summary._fields), index=base.classes.index)
    told = base.classes.join(numbers)
    told.insert(0, "label", told.index)
    return told.assign(baseline_top1=base_SK.mean(), method_top1=method_SK.mean())


def extremes(found: pd.DataFrame) -> pd.DataFrame:
    """Gains from the largest, then losses from the largest; of equal ones the lower label. What is alike is neither."""
    gains = found[found["mean"] > 0].sort_values("mean", ascending=False, kind="stable")
    losses = found[found["mean"] < 0].sort_values("mean", kind="stable")
    return pd.concat([gains.head(_most(len(found))), losses.head(_most(len(found)))])


def _most(classes: int) -> int:
    return max(1, min(MOST, classes // SHARE))


def _table(frame: pd.DataFrame, pair: str, base: str, parts: dict[str, pd.DataFrame], lacking: list[str]) -> Table:
    data = pd.concat([part.assign(method=name) for name, part in parts.items()], ignore_index=True)
    data = data.assign(pair=pair, baseline=base)
    shown = pd.concat([extremes(part).assign(method=name) for name, part in parts.items()], ignore_index=True)
    summaries = [stats.Summary(*row) for row in shown[["mean", "std", "n"]].itertuples(index=False)]
    expected, n = stats.header_n(summaries)
    text = {
        "class": list(shown["class"]),
        f"Δ points, {n}": [stats.explain(summary, "", expected, sign=True) for summary in summaries],
        f"top-1 %, {base}": [stats.number(value) for value in shown["baseline_top1"]],
        "top-1 %, method": [stats.number(value) for value in shown["method_top1"]],
        "test images": [str(count) for count in shown["images"]],
    }
    rows = pd.DataFrame(text, index=pd.Index(list(shown["method"]), name="method", dtype=object), dtype=object)
    name = f"per-class-to-{slug(base)}" + (f"-{slug(pair)}" if len(pairs(frame)) > 1 else "")
    alike = [name for name in parts if name not in set(shown["method"])]
    caption = _caption(base, data, {"nothing to compare": lacking, "every class alike": alike})
    caption += choice.first_listed(frame[frame["pair"] == pair], [base])
    return Table(name, f"By class, to {base}, {pair}", caption, rows, data)


def _caption(base: str, data: pd.DataFrame, without: dict[str, list[str]]) -> str:
    classes = data["label"].nunique()
    chance = (
        "A difference that is no larger than its ± may be chance."
        if np.nanmax(data["n"]) > 1
        else "One seed: no spread can be given, and no difference can be told from chance."
    )
    named = [f"{', '.join(names)} ({why})" for why, names in without.items() if names]
    left_out = f" Without a row: {'; '.join(named)}." if named else ""
    return (
        f"Test top-1 of single classes with the last epoch's weights, less that of {base} over the seeds that both "
        "finished, mean ± sample standard deviation over n seeds: for each method the classes that gain most, then "
        f"those that lose most, no more than {_most(classes)} of each. They were picked as the extremes of {classes} "
        f"classes, so these differences read large. {chance}{left_out}"
    )
