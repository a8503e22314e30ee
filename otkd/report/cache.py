"""What a report reads of a store, kept until the next one: of trials that have ended, as that changes no more.

Two Parquet files a sweep in `runs/reports/.cache/`: `<digest>.parquet` has learning curves, `<digest>.files.parquet`
files of trials that had to be fetched; the digest is that of the tracking store, the sweep's run and VERSION. Whether a
trial is as it was costs nothing but what a report reads anyway: its run, state, end and last values. What is not is
read from the store again. A cache that is lost, damaged or cannot be written costs time alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from otkd.core import names
from otkd.core.errors import StorageError
from otkd.core.layout import Layout, atomic
from otkd.core.trial import digest
from otkd.report import frame
from otkd.report.frame import Curves

if TYPE_CHECKING:
    from otkd.track.reader import SweepRecord, TrialRow

log = logging.getLogger("otkd.report")

VERSION = 1
"""Of the files; another one's are never read."""

SETTLED = ("finished", "diverged", "pruned", "failed")
"""States of a trial that nobody goes on with unless its run begins again, and ends at another time."""

ABOUT = b"otkd"
"""Key of what a file says of itself."""

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)
"""What a file raises that is not as it was written."""

_writing = Lock()
"""Two threads of a process share the name of a temporary file."""


class Kept(NamedTuple):
    """What lies on disk."""

    marks: dict[str, str]
    """Trial → its `mark` when it was read."""
    curves: dict[str, Curves]
    """By metric; each is whole for all trials of `marks`."""


NOTHING = Kept({}, {})


def epochs(layout: Layout, record: SweepRecord) -> pd.DataFrame:
    """What `otkd.report.frame.epochs` makes of a sweep; only what has changed since the last time is read.

    Raises:
        TrackingError: the store does not answer.
    """
    source = CachedCurves(layout, record)
    made = frame.epochs(record, source)
    source.keep()
    return made


def mark(row: TrialRow) -> str:
    """Changes whenever a trial gets another run, state, end or last value of a metric, or files that were missing."""
    told = (row.run_id, row.status, row.ended, row.tags.get(names.TAG_FILES, ""), sorted(row.metrics.items()))
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


class CachedCurves:
    """Curves of a sweep by metric, as `otkd.report.frame.epochs` asks for them."""

    def __init__(self, layout: Layout, record: SweepRecord) -> None:
        from otkd.track import reader  # brings mlflow's settings, which nothing else here needs

        self._layout = layout
        self._rows = {row.label.key: row for row in record.trials if row.run_id}
        self._marks = {key: mark(row) for key, row in _ended(record).items()}
        self._about = _about(reader.place(layout), record)
        self._path = layout.report_cache / f"{digest(self._about)}.parquet"
        self._kept = _load(self._path, self._about)
        self._found: dict[str, Curves] = {}

    def __call__(self, metric: str) -> Curves:
        """The curves of all trials that have the metric, in the order of the record.

        Raises:
            TrackingError: the store does not answer.
        """
        keys = [key for key, row in self._rows.items() if metric in row.metrics]
        known = self._kept.curves.get(metric)
        here = {key for key in keys if known is not None and self._is_kept(key)}
        rest = [key for key in keys if key not in here]
        parts = [] if known is None else [_chosen(known, keys, here)]
        parts += [_chosen(self._ask(rest, metric), keys, set(rest))] if rest or known is None else []
        place, epoch, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(place, kind="stable")
        self._found[metric] = Curves(keys, place[order], epoch[order], value[order])
        return self._found[metric]

    def keep(self) -> None:
        """Write the curves of all trials that have ended, if that says anything new."""
        same = self._found.keys() == self._kept.curves.keys()
        if not self._marks or (same and self._marks.items() <= self._kept.marks.items()):
            return
        settled = {name: _settled(curves, self._marks) for name, curves in self._found.items()}
        try:
            with _writing:
                _save(self._path, self._about, Kept(self._marks, settled))
        except (StorageError, pa.ArrowException) as error:
            log.warning("the next report reads every learning curve again: %s", _first_line(error))

    def _is_kept(self, key: str) -> bool:
        return key in self._marks and self._kept.marks.get(key) == self._marks[key]

    def _ask(self, keys: Sequence[str], metric: str) -> Curves:
        if not keys:
            return Curves([], np.empty(0, int), np.empty(0, int), np.empty(0))
        from otkd.track import reader

        found = reader.curves(self._layout, [self._rows[key].run_id for key in keys], metric)
        return Curves(keys, *found)


class CachedFiles:
    """Files of a sweep's trials, for plug-ins that ask; what lies on this machine is read where it lies."""

    def __init__(self, layout: Layout, record: SweepRecord) -> None:
        from otkd.track import reader

        self._files = reader.files(layout, record)
        away = {key: row for key, row in _ended(record).items() if not reader.are_here(layout, row)}
        self._marks = {key: mark(row) for key, row in away.items()}
        self._about = _about(reader.place(layout), record)
        self._path = layout.report_cache / f"{digest(self._about)}.files.parquet"
        self._kept = _load_files(self._path, self._about) if away else {}
        self._found: dict[tuple[str, str], str | None] = {}

    def text(self, key: str, path: str) -> str | None:
        """A text file of a trial; None where there is none.

        Raises:
            TrackingError: the store does not answer.
        """
        if key not in self._marks:
            return self._files.text(key, path)
        place = self._marks[key], path
        if place not in self._found:
            self._found[place] = self._kept[place] if place in self._kept else self._files.text(key, path)
        return self._found[place]

    def keep(self) -> None:
        """Write what was fetched of trials that have ended, if that says anything new."""
        if self._found.keys() <= self._kept.keys():
            return
        marks = set(self._marks.values())
        every = {place: text for place, text in self._kept.items() if place[0] in marks} | self._found
        schema = pa.schema(
            [(name, pa.string()) for name in ("mark", "path", "text")],
            metadata={ABOUT: json.dumps({"about": self._about})},
        )
        columns = [*map(list, zip(*every, strict=True)), list(every.values())]
        table = pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)
        try:
            with _writing, atomic(self._path) as temporary:
                parquet.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        except (StorageError, pa.ArrowException) as error:
            log.warning("the next report fetches files of trials again: %s", _first_line(error))


def _ended(record: SweepRecord) -> dict[str, TrialRow]:
    """Trial → its row, of those whose run changes no more."""
    rows = [row for row in record.trials if row.run_id and row.status in SETTLED and row.ended is not None]
    return {row.label.key: row for row in rows}


def _about(store: str, record: SweepRecord) -> dict[str, Any]:
    return {"version": VERSION, "store": digest(store), "sweep": record.run_id}


def _chosen(curves: Curves, keys: Sequence[str], wanted: set[str]) -> tuple[Any, Any, Any]:
    """The rows of wanted trials, by their places in `keys`."""
    places = {key: place for place, key in enumerate(keys) if key in wanted}
    place = frame.replaced(curves, places)
    ours = place >= 0
    return place[ours], curves.epoch[ours], curves.value[ours]


def _settled(curves: Curves, marks: dict[str, str]) -> Curves:
    keys = list(marks)
    return Curves(keys, *_chosen(curves, keys, set(keys)))


def _opened(path: Path, about: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
    """A file's table, and what it says of itself.

    Raises:
        Exception: one of DAMAGE; or the file is another sweep's.
    """
    table = parquet.ParquetFile(path, page_checksum_verification=True).read()
    told = json.loads(table.schema.metadata[ABOUT])
    if told["about"] != about:
        raise ValueError("it is not what its name says")
    return table, told


def _load(path: Path, about: dict[str, Any]) -> Kept:
    """The curves that a file has; nothing where there is none, or it is another sweep's, or damaged."""
    try:
        if not path.exists():
            return NOTHING
        table, told = _opened(path, about)
        if sum(told["rows"].values()) != len(table):
            raise ValueError("it is not whole")
        return Kept(told["marks"], dict(_curves(table, list(told["marks"]), told["rows"])))
    except DAMAGE as error:
        log.warning("%s cannot be read, so the learning curves are read again: %s", path, _first_line(error))
        return NOTHING


def _load_files(path: Path, about: dict[str, Any]) -> dict[tuple[str, str], str | None]:
    """(mark of a trial, path) → text, None for no such file; nothing where `_load` has nothing."""
    try:
        if not path.exists():
            return {}
        marks, paths, texts = (column.to_pylist() for column in _opened(path, about)[0].columns)
        return dict(zip(zip(marks, paths, strict=True), texts, strict=True))
    except DAMAGE as error:
        log.warning("%s cannot be read, so files of trials are fetched again: %s", path, _first_line(error))
        return {}


def _curves(table: pa.Table, keys: list[str], rows: dict[str, int]) -> Any:
    """(metric, curves), cut out of the table in which they lie one behind the other."""
    start = 0
    for metric, count in rows.items():
        place, epoch, value = (column.to_numpy() for column in table.slice(start, count).columns)
        if count and not 0 <= place.min() <= place.max() < len(keys):
            raise ValueError("a trial has no name")
        yield metric, Curves(keys, place, epoch, value)
        start += count


def _save(path: Path, about: dict[str, Any], kept: Kept) -> None:
    told = {"about": about, "marks": kept.marks, "rows": {name: len(one.value) for name, one in kept.curves.items()}}
    fields = [("place", pa.int32()), ("epoch", pa.int64()), ("value", pa.float64())]
    schema = pa.schema(fields, metadata={ABOUT: json.dumps(told)})
    options = {"compression": "zstd", "use_dictionary": ["place", "epoch"], "write_page_checksum": True}
    with atomic(path) as temporary, parquet.ParquetWriter(temporary, schema, **options) as writer:
        for one in kept.curves.values():
            columns = [one.place.astype(np.int32), one.epoch, one.value]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
