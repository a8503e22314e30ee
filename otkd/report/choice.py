"""What is compared: the figure that tables rank by, and the methods that others are held against.

A reader's choice stands in the frame's `attrs`, so tables and figures stay functions of the frame. Without one it is
test top-1 with the last epoch's weights, against the student alone and KD.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from otkd.core import names
from otkd.core.errors import OtkdError, did_you_mean
from otkd.report.frame import baselines, pairs, students, variants

METRIC, BASELINE = "metric", "baseline"
"""Keys of a frame's `attrs`."""
CHOSEN = "chosen"
"""Role of a baseline that the reader named."""


class Metric(NamedTuple):
    """One figure of a trial, with the rule that picked the weights or the epoch that it is of."""

    column: str
    name: str
    """What is measured, e.g. `test top-1`."""
    rule: str
    """The selection rule in few words, for the heads of columns."""
    by: str
    """The same within a sentence: `test top-1 with the last epoch's weights`."""
    measured: str
    """The same as a sentence, for captions."""
    lower: bool = False
    """The lower, the better."""
    unit: str = "%"
    digits: int = 2

    @property
    def words(self) -> str:
        """`test top-1 %`, `test divergence from the teacher, nats`."""
        return self.name + (self.suffix if self.unit in ("%", "") else f",{self.suffix}")

    @property
    def head(self) -> str:
        """`test top-1 %, last epoch`: a column's name."""
        return f"{self.words}, {self.rule}"

    @property
    def sentence(self) -> str:
        """`Test top-1 with the last epoch's weights.`: the figure and its rule, for captions."""
        better = "; lower is better" if self.lower else ""
        return f"{self.by[0].upper()}{self.by[1:]}{better}."

    @property
    def best(self) -> str:
        """Which mean is the best: `highest` or `lowest`."""
        return "lowest" if self.lower else "highest"

    @property
    def sign(self) -> int:
        """-1 where lower is better: figures times this rise with what is good."""
        return -1 if self.lower else 1

    @property
    def points(self) -> str:
        """What a difference is counted in, with a space before it; empty for a loss."""
        return " points" if self.unit == "%" else self.suffix

    @property
    def suffix(self) -> str:
        """What stands behind a figure, with a space before it; empty for a loss."""
        return f" {self.unit}".rstrip()


class Figure(NamedTuple):
    """What is measured on a set of images."""

    name: str
    unit: str = "%"
    lower: bool = False
    digits: int = 2


FIGURES = {
    names.TEST_TOP1: Figure("top-1"),
    names.TEST_TOP5: Figure("top-5"),
    names.TEST_LOSS: Figure("loss", "", lower=True, digits=4),
    names.TEST_AGREEMENT: Figure("agreement with the teacher"),
    names.TEST_ECE: Figure("calibration error", lower=True),
    names.TEST_KL: Figure("divergence from the teacher", "nats", lower=True, digits=4),
}
LAST = "Measured once, with the weights of the last epoch: none were picked by looking at test images."
BEST = "Measured once, with the weights that were best on held-out validation images."
TESTED = {
    "last": ("last epoch", "the last epoch's weights", LAST),
    "best": ("best epoch on val", "the weights best on val", BEST),
}
VAL_BEST = "The best epoch of each trial on held-out images: the images that picked it measure it, so it reads high."
VAL_LAST = "Measured on held-out validation images after the last epoch; what was tuned by these images reads high."


def _tested(weights: str, figure: str) -> Metric:
    rule, by, measured = TESTED[weights]
    name, unit, lower, digits = FIGURES[figure]
    return Metric(
        names.test(weights, figure), f"test {name}", rule, f"test {name} with {by}", measured, lower, unit, digits
    )


def _validated(column: str, figure: str) -> Metric:
    name, unit, lower, digits = FIGURES[figure]
    by = f"val {name} after the last epoch"
    return Metric(column, f"val {name}", "last epoch", by, VAL_LAST, lower, unit, digits)


KNOWN = (
    *(_tested(weights, figure) for weights in TESTED for figure in FIGURES),
    Metric(names.BEST_VAL_TOP1, "val top-1", "best epoch", "val top-1 of the best epoch", VAL_BEST),
    _validated(names.VAL_TOP1, names.TEST_TOP1),
    _validated(names.VAL_TOP5, names.TEST_TOP5),
    _validated(names.VAL_LOSS, names.TEST_LOSS),
    _validated(names.VAL_AGREEMENT, names.TEST_AGREEMENT),
)
METRICS = {metric.column: metric for metric in KNOWN}
"""Column → metric, of all that a reader may choose."""
DEFAULT = METRICS[names.test("last", names.TEST_TOP1)]


def named(text: str) -> Metric:
    """The metric of a column, or of a bare figure (`loss`), which is that on the test set with the last weights.

    Raises:
        OtkdError: there is none of that name; says which there are.
    """
    found = METRICS.get(text) or METRICS.get(names.test("last", text))
    if found is None:
        hint = did_you_mean(text, [*METRICS, *FIGURES])
        raise OtkdError(f"there is no metric {text!r}; there is {', '.join(METRICS)}.{hint}")
    return found


def metric(frame: pd.DataFrame) -> Metric:
    """The figure that tables compare."""
    return METRICS[frame.attrs.get(METRIC, DEFAULT.column)]


def against(frame: pd.DataFrame, pair: str) -> dict[str, str]:
    """Role → the method that others are held against: `student` and `kd` where there are any, or the one `chosen`.

    Those of one pair: sweeps side by side may have other baselines on other pairs.
    """
    chosen = frame.attrs.get(BASELINE)
    if chosen is not None:
        return {CHOSEN: chosen}
    return {role: name for role, name in baselines(frame[frame["pair"] == pair])._asdict().items() if name}


def floor(frame: pd.DataFrame, pair: str) -> str | None:
    """The one that figures and ablations of a pair are held against: the chosen baseline, or the student alone."""
    known = against(frame, pair)
    return known.get(CHOSEN) or known.get("student")


def first_listed(frame: pd.DataFrame, bases: Iterable[str | None]) -> str:
    """For captions, with a space before it: which of these baselines are the first of several with the same terms.

    They are counted on the pairs where they are the baseline; where counts differ, each is said with its pairs.
    """
    if frame.attrs.get(BASELINE) is not None:
        return ""
    wanted, found = set(bases), dict[str, dict[int, list[str]]]()
    for pair, rows in students(frame).groupby("pair", sort=False):
        terms = rows.drop_duplicates("variant").set_index("variant")["terms"]
        for base in against(frame, str(pair)).values():
            if base in wanted:
                alike = int((terms == terms[base]).sum())
                found.setdefault(base, {}).setdefault(alike, []).append(str(pair))
    return "".join(
        f" The baseline {base} is the first listed of {count} methods and settings with its terms{where}."
        for base, counts in found.items()
        for count, places in counts.items()
        if count > 1
        for where in [f" on {', '.join(places)}" if len(counts) > 1 else ""]
    )


def every(frame: pd.DataFrame) -> list[str]:
    """The baselines of all pairs."""
    return list(dict.fromkeys(name for pair in pairs(frame) for name in against(frame, pair).values()))


def choose(frame: pd.DataFrame, column: str, baseline: str | None) -> pd.DataFrame:
    """The frame with a reader's choice in its `attrs`.

    Args:
        column: of a metric in METRICS.
        baseline: a method, with its grid settings in brackets where it has several.

    Raises:
        OtkdError: no student has that figure, or there is no such method; says what there is.
    """
    frame = frame.copy()
    _expect_figure(frame, column)
    frame.attrs[METRIC] = column
    if baseline is not None:
        frame.attrs[BASELINE] = _method(frame, baseline)
    return frame


def _expect_figure(frame: pd.DataFrame, column: str) -> None:
    """Refuse a figure that no student has, unless none has any yet."""
    rows = students(frame)
    there = [name for name in METRICS if name in rows and rows[name].notna().any()]
    if there and column not in there and column != DEFAULT.column:
        held_out = " Nothing was held out for validation (`data.val`)." if column.startswith("val/") else ""
        raise OtkdError(f"no student of this sweep has {column}; there is {', '.join(there)}.{held_out}")


def _method(frame: pd.DataFrame, baseline: str) -> str:
    rows = students(frame)
    known = variants(frame)
    if baseline in known:
        return baseline
    settings = list(dict.fromkeys(rows.loc[rows["method"] == baseline, "variant"]))
    if len(settings) == 1:
        return str(settings[0])
    if settings:
        raise OtkdError(
            f"--baseline {baseline}: it has several settings; name one of {', '.join(map(repr, settings))}."
        )
    listed = ", ".join(known) or "none yet"
    near = next((name for name in known if name.casefold() == baseline.casefold()), baseline)
    raise OtkdError(f"--baseline: there is no method {baseline!r}; there is {listed}.{did_you_mean(near, known)}")
