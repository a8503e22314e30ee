"""The tidy frame: one row per trial, one column per thing known of it. Every table and figure starts here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from otkd.core import names
from otkd.core.records import Label
from otkd.report import selection

if TYPE_CHECKING:
    from otkd.track.reader import SweepRecord, TrialRow


class Curves(NamedTuple):
    """One metric in many trials, as columns: trial by trial, each one's by epoch."""

    keys: Sequence[str]
    place: NDArray[np.int64]
    """Of a row's trial in `keys`."""
    epoch: NDArray[np.int64]
    value: NDArray[np.float64]


Histories = Callable[[str], Curves | Mapping[str, Sequence[tuple[int, float]]]]
"""Metric → its curves, or trial key → [(epoch, value)]."""

IDENTITY = (
    "key",
    "role",
    "method",
    "variant",
    "stage",
    "configuration",
    "pair",
    "student",
    "teacher",
    "seed",
    "status",
    "reason",
    "terms",
    "run_id",
)
AXIS, PARAM, PROVENANCE = "axis.", "param.", "provenance."

BUDGET = (
    *("train.epochs", "train.batch_size", "train.optimizer.name", "train.optimizer.lr", "train.schedule.name"),
    *("data.limit", "data.val"),
)
"""Parameters kept as `param.…` columns, so that a caption can name the budget."""
NOTHING = ("null", "None", "0", "0.0", "")
"""Values of a parameter that mean that it is not used."""

EPOCH_METRICS = (
    *(names.TRAIN_LOSS, names.TRAIN_TOP1, names.TRAIN_TOP5),
    *(names.VAL_LOSS, names.VAL_TOP1, names.VAL_TOP5, names.VAL_AGREEMENT, names.LR),
    *(names.EPOCH_S, names.OWN_S, names.TEACHER_S, names.DATA_S, names.EVAL_S, names.IMAGES_PER_S, names.PEAK_MIB),
)
SIZES = (names.PARAMS, names.MADDS, names.BYTES, names.LATENCY_MS)
TESTS = tuple(names.test(weights, figure) for weights in ("last", "best") for figure in names.TEST_FIGURES)
TRIAL_METRICS = (*TESTS, names.BEST_EPOCH, names.BEST_VAL_TOP1, *SIZES, names.WALL_S)
METRICS = (*EPOCH_METRICS, *TRIAL_METRICS, *(names.TEACHER + name for name in (*TESTS, *SIZES)))
"""Columns that every frame has; a metric beyond these (a term's, say) gets a column where some trial has it."""


def steady(curves: pd.DataFrame) -> pd.Series:
    """The median, without the first epoch where there are others: in that one code is loaded and compiled."""
    later, alone = curves.duplicated("key"), ~curves.duplicated("key", keep=False)
    return curves[later | alone].groupby("key", observed=True)["value"].median()


def peak(curves: pd.DataFrame) -> pd.Series:
    """The most of any epoch."""
    return curves.groupby("key", observed=True)["value"].max()


SPEEDS = {names.EPOCH_S: steady, names.IMAGES_PER_S: steady, names.PEAK_MIB: peak}
"""Per-epoch costs → what makes of all trials' epochs (key, epoch, value; in order) each one's figure, by key."""


class Baselines(NamedTuple):
    student: str | None
    """Variant whose only term is `ce`: the floor, without a teacher."""
    kd: str | None
    """Variant whose terms are exactly `ce` and `kd`."""


def trials(record: SweepRecord, history: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per trial in the order of the sweep's labels; a trial that no tracker knows has status `missing`.

    Args:
        record: the sweep as the reader gives it.
        history: what `epochs` gives; with it a trial's time is that of its `steady` epochs and not the last one's.

    Returns:
        A frame with the columns IDENTITY, `axis.<path>`, METRICS (NaN where unknown; accuracies in percent),
        `param.<path>` of BUDGET and `provenance.<field>`. Of a sweep that searches, what is not compared has the role
        `search` (see `otkd.report.selection`).
    """
    known = {row.label.key: row for row in record.trials}
    planned = {label.key for label in record.info.labels}
    labels = [*record.info.labels, *(row.label for row in record.trials if row.label.key not in planned)]
    rows = [_row(label, known.get(label.key)) for label in labels]
    columns = dict.fromkeys(
        [*IDENTITY, *METRICS, *(PARAM + name for name in BUDGET), *(key for row in rows for key in row)]
    )
    frame = pd.DataFrame(rows, columns=list(columns))
    metrics = [name for name in frame if "/" in name or name == names.LR]
    frame = frame.astype(dict.fromkeys(metrics, float))
    return selection.staged(_with_speeds(_with_terms(frame), history), history, record.info.finals)


def epochs(record: SweepRecord, histories: Histories) -> pd.DataFrame:
    """The long frame of learning curves and costs: key, metric, epoch, value; the first two are categories.

    Accuracy is `val/top1`, or `train/top1` where nothing was held out.
    """
    keys = list(dict.fromkeys(row.label.key for row in record.trials))
    parts = {name: _rows(histories(name), keys) for name in (names.TRAIN_LOSS, *SPEEDS, names.VAL_TOP1)}
    final = {row.label.key for row in record.trials if row.label.stage == selection.FINAL}
    if final or not len(parts[names.VAL_TOP1].value):
        parts[names.TRAIN_TOP1] = _rows(histories(names.TRAIN_TOP1), keys, final or None)
    return _long({name: part for name, part in parts.items() if len(part.value)}, keys)


def replaced(curves: Curves, places: Mapping[str, int]) -> NDArray[np.int64]:
    """The place of each row's trial among others; -1 where it is not among them."""
    return np.asarray([places.get(key, -1) for key in curves.keys], dtype=int)[curves.place]


def students(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that are compared."""
    return frame[frame["role"] == "student"]


def variants(frame: pd.DataFrame) -> list[str]:
    """Methods, with their grid settings where they have some, in the order of the sweep."""
    return list(dict.fromkeys(frame.loc[frame["role"] == "student", "variant"]))


def pairs(frame: pd.DataFrame) -> list[str]:
    """Pairs in the order of the sweep."""
    return list(dict.fromkeys(frame.loc[frame["role"] == "student", "pair"]))


def axes(frame: pd.DataFrame) -> list[str]:
    """Dotted paths of the grid axes."""
    return [name.removeprefix(AXIS) for name in frame if name.startswith(AXIS)]


def baselines(frame: pd.DataFrame) -> Baselines:
    """The two methods that others are held against, told by the terms of their objective; the first listed wins."""
    rows = frame.loc[frame["role"] == "student", ["terms", "variant"]]
    first = rows.drop_duplicates("terms").set_index("terms")["variant"]
    return Baselines(first.get("ce"), first.get("ce+kd"))


def has_val(frame: pd.DataFrame) -> bool:
    """Whether some trial that is compared was measured on held-out images."""
    return bool(students(frame)[[names.BEST_VAL_TOP1, names.VAL_TOP1]].notna().any(axis=None))


def seeds(frame: pd.DataFrame) -> int:
    """The most seeds that any method finished on one pair."""
    rows = students(frame)
    rows = rows[rows["status"] == "finished"]
    return int(rows.groupby(["variant", "pair"])["seed"].nunique().max()) if len(rows) else 0


def budget(frame: pd.DataFrame) -> str:
    """What every student was given, and how its settings were chosen where that was by a search."""
    rows = students(frame)
    parts = [
        _each(rows, "train.epochs", "{} epochs"),
        _each(rows, "train.batch_size", "batch size {}"),
        " ".join(filter(None, [_each(rows, "train.optimizer.name"), _each(rows, "train.optimizer.lr", "lr {}")])),
        _each(rows, "train.schedule.name", "{} schedule"),
        _each(rows, "data.limit", "{} training images") or "all training images",
        _held_out(rows) or "nothing held out for validation",
    ]
    known = bool(parts[0])
    given = f"Budget of a student: {', '.join(filter(None, parts))}." if known else "The budget is not on record."
    return " ".join(filter(None, [given, selection.rule(frame)]))


def _held_out(rows: pd.DataFrame) -> str:
    """What `data.val` (a share below 1, or a count) held out."""
    values = [float(value) for value in rows[PARAM + "data.val"].dropna().unique() if value not in NOTHING]
    words = [f"{100 * value:g} %" if value < 1 else f"{value:g}" for value in values]
    return f"of which {' or '.join(words)} held out for validation" if words else ""


def show(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(item) for item in value) + "]"
    return str(value)


def variant(label: Label) -> str:
    """`ot (epsilon=0.05)`: the method and its grid settings."""
    settings = configuration(label)
    return f"{label.method} ({settings})" if settings else label.method


def configuration(label: Label) -> str:
    """`weight=10, epsilon=0.05`: the settings of a grid or a search, by their last word where that is clear."""
    last = [path.split(".")[-1] for path in label.axes]
    return ", ".join(
        f"{word if last.count(word) == 1 else path}={show(value)}"
        for word, (path, value) in zip(last, label.axes.items(), strict=True)
    )


def teachers(frame: pd.DataFrame, pair: str) -> pd.DataFrame:
    """The trials of the teacher of `pair`, which its title names."""
    return frame[(frame["role"] == "teacher") & (frame["pair"] == pair.split(" ← ")[-1])]


def _row(label: Label, row: TrialRow | None) -> dict[str, Any]:
    params, tags, metrics = (row.params, row.tags, row.metrics) if row else ({}, {}, {})
    fields = {field: getattr(label, field) for field in ("key", "role", "method", "pair", "student", "teacher", "seed")}
    provenance = {
        PROVENANCE + tag.removeprefix(names.TAG_PROVENANCE): value
        for tag, value in sorted(tags.items())
        if tag.startswith(names.TAG_PROVENANCE)
    }
    provenance |= {f"{PROVENANCE}{part} data": digest for part, digest in row.data} if row else {}
    return {
        **fields,
        "variant": variant(label),
        "stage": label.stage,
        "configuration": configuration(label),
        "status": row.status if row else "missing",
        "reason": tags.get(names.TAG_REASON, ""),
        "terms": "+".join(sorted({name.split(".")[1] for name in params if name.startswith("objective.")})),
        "run_id": row.run_id if row else "",
        **({} if label.stage else {AXIS + path: value for path, value in label.axes.items()}),
        **dict(sorted(metrics.items())),  # no store says in which order it gives them
        **{PARAM + name: params[name] for name in BUDGET if name in params},
        **provenance,
    }


def _with_terms(frame: pd.DataFrame) -> pd.DataFrame:
    """A trial that never ran has no parameters; its method's other trials say which terms it has."""
    known = frame[frame["terms"] != ""].drop_duplicates(["role", "method"]).set_index(["role", "method"])["terms"]
    terms = [
        terms or known.get((role, method), "")
        for terms, role, method in zip(frame["terms"], frame["role"], frame["method"], strict=True)
    ]
    return frame.assign(terms=pd.Series(terms, index=frame.index, dtype=object))


def _with_speeds(frame: pd.DataFrame, history: pd.DataFrame | None) -> pd.DataFrame:
    if history is None or history.empty:
        return frame
    for name, rule in SPEEDS.items():
        by_trial = rule(history[history["metric"] == name].sort_values("epoch"))
        frame = frame.assign(**{name: frame["key"].map(by_trial).fillna(frame[name]).astype(float)})
    return frame


def _rows(
    found: Curves | Mapping[str, Sequence[tuple[int, float]]], keys: list[str], only: set[str] | None = None
) -> Curves:
    """The curves of those trials that the sweep has, by their places in `keys`."""
    curves = found if isinstance(found, Curves) else _as_columns(found)
    places = {key: place for place, key in enumerate(keys) if only is None or key in only}
    place = replaced(curves, places)
    ours = place >= 0
    return Curves(keys, place[ours], curves.epoch[ours], curves.value[ours])


def _as_columns(found: Mapping[str, Sequence[tuple[int, float]]]) -> Curves:
    rows = [(place, *point) for place, curve in enumerate(found.values()) for point in curve]
    place, epoch, value = zip(*rows, strict=True) if rows else ((), (), ())
    return Curves(list(found), np.asarray(place, int), np.asarray(epoch, int), np.asarray(value, float))


def _long(parts: Mapping[str, Curves], keys: list[str]) -> pd.DataFrame:
    """One curve behind the other, metric by metric."""
    columns = [[*(getattr(part, field) for part in parts.values())] for field in ("place", "epoch", "value")]
    place, epoch, value = (np.concatenate(column) if column else np.empty(0, int) for column in columns)
    metric = np.repeat(np.arange(len(parts)), np.asarray([len(part.value) for part in parts.values()], dtype=int))
    return pd.DataFrame(
        {
            "key": pd.Categorical.from_codes(place, categories=pd.Index(keys, dtype=str)),
            "metric": pd.Categorical.from_codes(metric, categories=pd.Index(list(parts), dtype=str)),
            "epoch": epoch,
            "value": value.astype(float, copy=False),
        },
        copy=False,
    )


def _each(rows: pd.DataFrame, name: str, text: str = "{}") -> str:
    values = [value for value in rows[PARAM + name].dropna().unique() if value not in NOTHING]
    return text.format(" or ".join(values)) if values else ""
