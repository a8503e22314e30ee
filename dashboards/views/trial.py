"""One trial: how it stands, its curves, its mistakes, its transport plan, its settings."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import ask, charts, files, text
from dashboards.source import Sweep
from otkd.core import names
from otkd.report import live
from otkd.report.choice import METRICS
from otkd.report.selection import SEARCH
from otkd.report.style import OKABE_ITO

FIGURES = {
    **{metric.column: (metric.head, metric.digits) for metric in METRICS.values()},
    names.EPOCH_S: ("seconds per epoch", 2),
    names.WALL_S: ("seconds in all", 2),
    names.PARAMS: ("parameters", 0),
}
"""Figure of a trial → its words and decimals."""


def show(sweep: Sweep) -> None:
    """Choose a trial, by what it is or by its key."""
    row = _choose(sweep)
    if row is None:
        return
    text.head(f"{row['pair']} · {row['variant']} · seed {row['seed']}")
    text.say(" · ".join(filter(None, [str(row["status"]), str(row["stage"] or ""), f"key {row['key']}"])))
    if row["reason"]:
        text.notice(str(row["reason"]))
    _figures(row)
    if row["run_id"]:
        _link(sweep, str(row["run_id"]))
    charts.curves(sweep, row.to_frame().T, "variant", {row["variant"]: OKABE_ITO[0]}, "trial")
    _plan(sweep, row)
    _mistakes(sweep, row)
    _settings(sweep, row)


def _choose(sweep: Sweep) -> pd.Series | None:
    """The trial that is named by pair, method, seed and key."""
    rows = sweep.frame
    if rows.empty:
        text.say("No trial is on record yet.")
        return None
    first, second, third = st.columns([3, 3, 3])
    with first:
        students = [*sweep.pairs, *dict.fromkeys(rows["pair"])]
        pair = ask.one("Pair, or teacher", list(dict.fromkeys(students)), "trial.pair")
    rows = rows[rows["pair"] == pair]
    with second:
        method = ask.one("Method", list(dict.fromkeys(rows["variant"])), "trial.method")
    rows = rows[rows["variant"] == method]
    with third:
        words = {key: _words(row) for key, row in rows.set_index("key").iterrows()}
        key = ask.one("Trial", list(words), "trial.key", format_func=words.get)
    return rows[rows["key"] == key].iloc[0]


def open_key(sweep: Sweep, key: str) -> None:
    """Have this view show the trial `key` when it is drawn next."""
    row = sweep.frame[sweep.frame["key"] == key].iloc[0]
    for widget, value in (("view", "One trial"), ("trial.pair", row["pair"]), ("trial.method", row["variant"])):
        ask.preset(widget, value)
    ask.preset("trial.key", key)


def _words(row: pd.Series) -> str:
    return " · ".join(filter(None, [f"seed {row['seed']}", row["stage"], row["status"], str(row.name)[:10]]))


def _figures(row: pd.Series) -> None:
    known = {
        words: f"{row[name]:,.{digits}f}"
        for name, (words, digits) in FIGURES.items()
        if name in row and math.isfinite(row[name])
    }
    if not known:
        text.small("No figure is on record.")
        return
    index = pd.Index(list(known), name="figure", dtype=object)
    text.plain(pd.DataFrame({f"seed {row['seed']}": list(known.values())}, index=index), "Figures of the trial")
    if row["status"] != "finished":
        text.small("It has not finished: figures of the last epoch are those of the last one on record.")
    if row["role"] == SEARCH:
        text.small("A candidate of the search: nothing is chosen by test figures, so none is shown.")


def _link(sweep: Sweep, run_id: str) -> None:
    address = sweep.page(run_id)
    if not address:
        return
    st.link_button("Its run in MLflow", address)
    if live.needs_ui(sweep.layout):
        text.small("The link works while `make ui` runs.", code=True)


def _plan(sweep: Sweep, row: pd.Series) -> None:
    """The matrices that the terms kept on the way, and when training had ended."""
    found = files.pictures(sweep, row)
    if not found:
        return
    text.head("Transport plan")
    name = ask.one("Which", list(found), "trial.picture") if len(found) > 1 else next(iter(found))
    epochs = list(found[name])
    epoch = ask.one("After epoch", epochs, "trial.epoch", default=epochs[-1]) if len(epochs) > 1 else epochs[0]
    picture = found[name][epoch]
    text.small(picture.about)
    ends = ("teacher, by class", "student, by class") if picture.classes else ("teacher", "student")
    charts.matrix(np.asarray(picture.matrix), name, *ends, "mass")


def _mistakes(sweep: Sweep, row: pd.Series) -> None:
    """Which class was taken for which, on the test images; not of a search's candidates."""
    counts = files.confusion(sweep, row) if row["role"] != SEARCH else None
    if counts is None:
        return
    text.head("Which class was taken for which")
    taken = np.zeros((counts.classes, counts.classes))
    for label, other, images in counts.cells:
        taken[label, other] = images
    shares = 100 * taken / np.maximum(taken.sum(axis=1, keepdims=True), 1)
    charts.matrix(shares, "test images, last weights", "taken for class", "class", "% of the class's images", 100)
    named = files.class_names(sweep, row.to_frame().T)
    figures = sorted(counts.by_class(), key=lambda found: math.inf if found.top1 is None else found.top1)
    shown = pd.DataFrame(
        {
            "class": [named.get(found.label, str(found.label)) for found in figures],
            "top-1 %": [found.top1 for found in figures],
            "test images": [found.images for found in figures],
            "mistaken most for": [
                "" if found.mistaken_for is None else named.get(found.mistaken_for, str(found.mistaken_for))
                for found in figures
            ],
            "times": [found.mistaken for found in figures],
        }
    )
    config = {"top-1 %": st.column_config.NumberColumn(format="%.2f")}
    st.dataframe(shown, hide_index=True, width="stretch", column_config=config)


def _settings(sweep: Sweep, row: pd.Series) -> None:
    settings = files.settings(sweep, row)
    with st.expander("Its settings, every default filled in"):
        if settings:
            st.code(settings, language="yaml")
        else:
            text.say("They are written when a trial has ended.")
