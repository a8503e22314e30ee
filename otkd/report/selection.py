"""What a search tried, which configuration won, and which of its trials are compared.

A sweep that searches has trials of two stages: `search`, the candidates, and `final`, the winners trained again.
Tables compare the final ones, or, where a search ends without, the winning candidates. All other trials of the search
get the role `search`, which no table of results looks at, and lose their test figures: nothing was chosen by these, and
no reader shall begin to.
"""

from __future__ import annotations

import math
from statistics import fmean

import pandas as pd

from otkd.core import names
from otkd.report.inference import DIGITS

SEARCH, FINAL = "search", "final"
STUDY = ["pair", "method"]
CONFIGURATION = [*STUDY, "configuration"]
VAL, EPOCHS = "best_val", "epochs"
"""Columns of a searched sweep's frame: the best val top-1 on record so far, and the last epoch on record."""


def staged(frame: pd.DataFrame, history: pd.DataFrame | None, finals: bool) -> pd.DataFrame:
    """The frame with what is not compared set apart; as it is where nothing was searched.

    Args:
        history: what `otkd.report.frame.epochs` gives; it knows of trials that were stopped early.
        finals: whether winners are trained again, now or later.
    """
    if not searched(frame):
        return frame
    frame = _with_progress(frame, history)
    again = finals or (frame["stage"] == FINAL).any()
    won = _won(frame) & (not again)
    apart = (frame["stage"] == SEARCH) & ~won & (again | _student(frame))
    tests = [name for name in frame if name.startswith("test/")]
    frame = frame.assign(role=frame["role"].mask(apart, SEARCH), variant=frame["variant"].mask(won, frame["method"]))
    return frame.assign(**{name: frame[name].mask(apart) for name in tests})


def searched(frame: pd.DataFrame) -> bool:
    """Whether any of the trials are a search's."""
    return "stage" in frame and bool((frame["stage"] == SEARCH).any())


def configurations(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration in the order of trial: its study and settings, `val`, `finished` and `won`.

    `val` is the mean over seeds of the best val top-1; `finished` says that all seeds were trained to their end. The
    winner of a study has the highest `val` among the finished, or, in a study that is over and has none, among those
    that were stopped early; of equal ones it is the first.
    """
    rows = frame[(frame["stage"] == SEARCH) & _student(frame)]
    keys = [rows[name] for name in CONFIGURATION]
    found = pd.DataFrame(
        {
            "val": rows[VAL].groupby(keys, sort=False).agg(_mean),
            "finished": rows["status"].eq("finished").groupby(keys, sort=False).all(),
            "stopped": rows["status"].isin(["finished", "pruned"]).groupby(keys, sort=False).all(),
            "open": rows["status"].isin(["running", "missing"]).groupby(keys, sort=False).any(),
        }
    ).reset_index()
    waits = found[["finished", "open"]].groupby([found[name] for name in STUDY]).transform("any").any(axis=1)
    able = found[(found["finished"] | (found["stopped"] & ~waits)) & found["val"].notna()]
    best = able.loc[able.groupby(STUDY, sort=False)["val"].idxmax()] if len(able) else able
    return found.assign(won=found.index.isin(best.index))


def rule(frame: pd.DataFrame) -> str:
    """For captions: that settings were chosen, how, and among how many; empty where nothing was searched."""
    if not searched(frame):
        return ""
    counts = configurations(frame).groupby(STUDY, sort=False).size().groupby("method", sort=False).max()
    tried = ", ".join(f"{method} {count}" for method, count in counts.items())
    chosen = f"Settings were chosen by mean val top-1; configurations tried a pair: {tried}."
    if (frame["stage"] == FINAL).any():
        return f"{chosen} Winners were trained again on all training images with fresh seeds, and tested once."
    return f"{chosen} Each figure is that of a method's best one, with the seeds that it was chosen by."


def progress(frame: pd.DataFrame) -> list[str]:
    """One sentence on how far a search is."""
    if not searched(frame):
        return []
    found = configurations(frame)
    studies = len(found[STUDY].drop_duplicates())
    whole = int(found["finished"].sum())
    return [
        f"The search has tried {len(found)} configuration{'s' * (len(found) != 1)} in {studies} "
        f"stud{'ies' if studies != 1 else 'y'}, {whole} of them to the end of training."
    ]


def _mean(values: pd.Series) -> float:
    """The mean of the values that are numbers, without the rounding of floats, which would break ties."""
    known = values.dropna()
    return round(fmean(known), DIGITS) if len(known) else math.nan


def _student(frame: pd.DataFrame) -> pd.Series:
    """Rows with a teacher of their own, whatever their role has become."""
    return frame["teacher"] != ""


def _won(frame: pd.DataFrame) -> pd.Series:
    """Rows of winning configurations."""
    found = configurations(frame)
    winners = pd.MultiIndex.from_frame(found.loc[found["won"], CONFIGURATION])
    rows = pd.MultiIndex.from_frame(frame[CONFIGURATION])
    return pd.Series(rows.isin(winners), index=frame.index) & (frame["stage"] == SEARCH) & _student(frame)


def _with_progress(frame: pd.DataFrame, history: pd.DataFrame | None) -> pd.DataFrame:
    best, epochs = frame[names.BEST_VAL_TOP1], pd.Series(float("nan"), index=frame.index)
    if history is not None and len(history):
        curve = history[history["metric"] == names.VAL_TOP1].groupby("key")["value"].max()
        best = best.fillna(frame["key"].map(curve))
        epochs = frame["key"].map(history.groupby("key")["epoch"].max())
    return frame.assign(**{VAL: best.fillna(frame[names.VAL_TOP1]).astype(float), EPOCHS: epochs})
