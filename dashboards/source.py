"""The sweep that is shown: read once, kept until the store has something new, shared by all who look."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from otkd.core import names, plugins
from otkd.core.layout import Layout
from otkd.report import choice, live, render, style, summary
from otkd.report import frame as frames
from otkd.report.choice import Metric
from otkd.report.table import Table

if TYPE_CHECKING:
    from collections.abc import Hashable

METRICS = {names.VAL_TOP1: "val top-1 %", names.TRAIN_TOP1: "train top-1 %", names.TRAIN_LOSS: "train loss"}
"""Metric of a learning curve → its words."""

LARGE = 100
"""Methods times pairs above which a sweep is large."""

KEPT = 3
"""Sweeps (or states of one) that are kept in memory."""

REST = 5
"""So many times as long as its reading took a sweep is not read again, so that a large one can be looked at, too."""


class Sweep:
    """A sweep as it was when it was read. All sessions share its frames, so none may change them."""

    def __init__(self, layout: Layout, record: Any, epochs: pd.DataFrame, stamp: str = "", took: float = 0.0) -> None:
        self.layout = layout
        self.info = record.info
        self.started = record.started
        self.stamp = stamp
        self.epochs = epochs
        self.frame = frames.trials(record, epochs)
        self.read = time.time()
        self._rests = self.read + REST * took
        self._record = record._replace(trials=())
        self._states = {row.run_id: _state(row) for row in record.trials if row.run_id}
        self._made: dict[Hashable, list[Table]] = {}

    @property
    def fresh(self) -> bool:
        """Whether it was read a moment ago, measured by how long that took."""
        return time.time() < self._rests

    @property
    def pairs(self) -> list[str]:
        """Pairs in the order of the sweep."""
        return frames.pairs(self.frame)

    @property
    def students(self) -> pd.DataFrame:
        """The trials that are compared."""
        return frames.students(self.frame)

    @property
    def large(self) -> bool:
        """Whether tables over all pairs take long: then a view begins with one pair, or waits to be asked."""
        return len(self.pairs) * len(frames.variants(self.frame)) > LARGE

    @cached_property
    def colours(self) -> dict[str, str]:
        """Method → its colour in the report."""
        return {name: look.colour for name, look in style.looks(self.frame).items()}

    @cached_property
    def sentences(self) -> list[str]:
        """What the report says in words."""
        return summary.sentences(self.frame)

    def measured(self, pairs: Iterable[str] = ()) -> list[str]:
        """Columns of the figures that some student has, that of the report first, which is there in any case."""
        rows = frames.students(self.on(pairs))
        there = [column for column in choice.METRICS if column in rows and rows[column].notna().any()]
        return list(dict.fromkeys([choice.DEFAULT.column, *there]))

    def tables(self, name: str, pairs: Iterable[str] = (), metric: Metric = choice.DEFAULT) -> list[Table]:
        """The report's tables of the plug-in `name`, made once.

        Args:
            pairs: those that are in it; all where none are named.
            metric: the figure that they compare, one of `measured`.
        """
        wanted = (name, metric.column, *pairs)
        if wanted not in self._made:
            frame = self.on(pairs)
            chosen = frame if metric == choice.DEFAULT else choice.choose(frame, metric.column, None)
            self._made[wanted] = list(plugins.load("tables", name).table(chosen, self.info))
        return self._made[wanted]

    def on(self, pairs: Iterable[str]) -> pd.DataFrame:
        """The frame with the students of `pairs` alone, and every teacher; as it is where none are named."""
        chosen = set(pairs)
        if not chosen:
            return self.frame
        return self.frame[self.frame["pair"].isin(chosen) | (self.frame["teacher"] == "")]

    def curves(self, keys: Iterable[str]) -> pd.DataFrame:
        """Rows of the learning curves (key, metric, epoch, value) of some trials."""
        key = self.epochs["key"].cat
        return self.epochs[key.categories.isin(list(keys))[key.codes]]

    def page(self, run_id: str) -> str:
        """Address of a run in MLflow's pages; empty where it is not known."""
        return str(self._record.page(run_id))

    def file(self, row: pd.Series, path: str) -> str | None:
        """A text file of a trial's run; None where there is none.

        Raises:
            TrackingError: the store does not answer, or the file cannot be read.
        """
        run_id = row["run_id"]
        return _file(str(self.layout.root), live.store(self.layout), run_id, self._states.get(run_id, ""), path)


def _state(row: Any) -> str:
    """Another whenever a trial ends, goes on, or gets files that were missing."""
    return f"{row.status} {row.ended} {row.tags.get(names.TAG_FILES, '')}"


def sweeps(layout: Layout, stamp: str) -> list[str]:
    """Names of the sweeps on record, the newest first."""
    return _sweeps(str(layout.root), live.store(layout), stamp)


def read(layout: Layout, name: str, stamp: str) -> Sweep:
    """The newest sweep of a name."""
    return _read(str(layout.root), live.store(layout), name, stamp)


def again() -> None:
    """Forget what was read."""
    _sweeps.clear()
    _read.clear()
    _file.clear()


@st.cache_data(max_entries=KEPT, show_spinner=False)
def _sweeps(root: str, store: str, stamp: str) -> list[str]:
    return live.sweeps(Layout(root))


@st.cache_resource(max_entries=KEPT, show_spinner="Reading the sweep …")
def _read(root: str, store: str, name: str, stamp: str) -> Sweep:
    layout, began = Layout(root), time.monotonic()
    record, epochs = render.read(layout, name)
    return Sweep(layout, record, epochs, stamp, time.monotonic() - began)


@st.cache_data(max_entries=300, show_spinner=False)
def _file(root: str, store: str, run_id: str, state: str, path: str) -> str | None:
    return live.text(Layout(root), run_id, path)
