"""Several sweeps as one: the students of all of them in one frame, each trial once.

Sweeps are joined as records, so that every table and figure takes them as it takes one. A method's name stands for one
set of settings: where two sweeps mean different ones by it, each is shown as `method [sweep]`; where they taught with
different teachers, each pair is shown as `pair [sweep]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from otkd.core.errors import OtkdError
from otkd.core.records import Label, SweepInfo
from otkd.core.trial import digest
from otkd.report.frame import BUDGET, NOTHING, variant
from otkd.report.selection import SEARCH

if TYPE_CHECKING:
    from otkd.track.reader import SweepRecord, TrialRow

NEVER = ("seed", "teacher.seed")
"""Parameters in which trials of one method differ."""
OWN = ("objective.", "train.")
"""Beginnings of the parameters that a method has on any pair of networks."""
OPTIONS = "data.options"
"""Beginning of the parameters that are a data set's own options."""
SPLIT = "data.split_seed"
"""Parameter that says which images a validation split or a limit takes."""
TESTED = "digest of the test images"
"""What is told of sweeps whose students were tested on different images, where no option of the data set says why."""
ARROW = " ← "

Rows = list["TrialRow"]
Groups = dict[str, dict[str, Rows]]
"""Title of a method or teacher → sweep → its trials."""


def join(
    sweeps: Sequence[tuple[SweepRecord, pd.DataFrame]], mixed: bool = False
) -> tuple[SweepRecord, pd.DataFrame, str]:
    """One record, its learning curves, and what every table of it has to be marked with (empty for nothing).

    Args:
        sweeps: records with what `frame.epochs` gives.
        mixed: take sweeps whose students had different budgets, or other images of one data set.

    Raises:
        OtkdError: they cannot stand in one table; says what differs, and the way out.
    """
    records = list({record.run_id: record for record, _ in sweeps}.values())
    _expect_alike(records)
    differing = budgets(records)
    if differing and not mixed:
        what = _what(differing)
        raise OtkdError(
            f"{_and(record.info.name for record in records)} had different {what}: {told(differing)}. One table of "
            f"all would compare the {what}, too. --mixed-budgets makes it, and marks every table; or report each by "
            "itself: `otkd report NAME`."
        )
    curves = pd.concat([epochs for _, epochs in sweeps], ignore_index=True)
    joined = _joined(records)
    return joined, curves.drop_duplicates(["key", "metric", "epoch"], ignore_index=True), _mark(records, differing)


def budgets(records: Sequence[SweepRecord]) -> dict[str, dict[str, str]]:
    """What of the budget or of the images differs between students of the sweeps → sweep → its values."""
    found: dict[str, dict[str, str]] = {}
    for name in BUDGET:
        by_sweep = {record.info.name: _values(record, name) for record in records if _compared(record)}
        if len(set(by_sweep.values())) > 1:
            found[name] = {sweep: " or ".join(values) or "none" for sweep, values in by_sweep.items()}
    return found | _images(records)


def _images(records: Sequence[SweepRecord]) -> dict[str, dict[str, str]]:
    """The same of options of the data set, the seed of its split, and what was tested on; as far as it is on record."""
    names = {name for record in records for row in _compared(record) for name in row.params}
    splits = any(_values(record, name) for record in records for name in ("data.val", "data.limit"))
    names = {name for name in names if name.startswith(OPTIONS) or (name == SPLIT and splits)}
    told_of = {name: {record.info.name: _raw(record, name) for record in records} for name in sorted(names)}
    tested = {TESTED: {record.info.name: _tested(record) for record in records}}
    differing = _differing(told_of)
    explained = any(name.startswith(OPTIONS) for name in differing)
    return differing if explained else differing | _differing(tested)


def _differing(told_of: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, dict[str, str]]:
    """What is not the same in all sweeps that have it on record."""
    known = {name: {sweep: values for sweep, values in group.items() if values} for name, group in told_of.items()}
    return {
        name: {sweep: " or ".join(values) for sweep, values in group.items()}
        for name, group in known.items()
        if len(set(group.values())) > 1
    }


def _what(differing: Mapping[str, object]) -> str:
    """`budgets`, `data`, or `budgets and data`."""
    of_data = [name in (TESTED, SPLIT) or name.startswith(OPTIONS) for name in differing]
    return _and([*["budgets"] * (not all(of_data)), *["data"] * any(of_data)])


def told(differing: Mapping[str, Mapping[str, str]]) -> str:
    """`train.epochs is 240 in a and 100 in b; …`."""
    return "; ".join(
        f"{name} is {_and(f'{values} in {sweep}' for sweep, values in by_sweep.items())}"
        for name, by_sweep in differing.items()
    )


def _mark(records: Sequence[SweepRecord], differing: Mapping[str, Mapping[str, str]]) -> str:
    if not differing:
        return ""
    what = _what(differing)
    return (
        f"Mixed {what}: {told(differing)}. A difference between methods of different sweeps may be due to "
        "that, and runs of one seed share less than they do within a sweep. On a pair of networks all methods are held "
        f"against the same baselines, whatever their {what}: where none was chosen, those of the first sweep that has "
        f"them there ({', then '.join(record.info.name for record in records)})."
    )


def _expect_alike(records: Sequence[SweepRecord]) -> None:
    """Refuse what no table can compare, whatever is asked for."""
    alone = "Report each by itself: `otkd report NAME`."
    data = {record.info.name: record.info.dataset for record in records}
    if len(set(data.values())) > 1:
        where = _and(f"{dataset} in {name}" for name, dataset in data.items())
        raise OtkdError(f"different data sets cannot stand in one table: {where}. {alone}")
    finals = {
        record.info.name: record.info.finals for record in records if any(label.stage for label in record.info.labels)
    }
    if len(set(finals.values())) > 1:
        groups = {state: _and(name for name, own in finals.items() if own is state) for state in (True, False)}
        raise OtkdError(
            f"the winners of the search were trained again in {groups[True]} and not in {groups[False]}: their "
            f"figures were not come by alike. {alone}"
        )


def _compared(record: SweepRecord) -> Rows:
    """Students with parameters on record, without candidates of a search where there are others."""
    rows = [row for row in record.trials if row.label.role == "student" and row.params]
    return [row for row in rows if row.label.stage != SEARCH] or rows


def _values(record: SweepRecord, name: str) -> tuple[str, ...]:
    return tuple(value for value in _raw(record, name) if value not in NOTHING)


def _raw(record: SweepRecord, name: str) -> tuple[str, ...]:
    return tuple(sorted({row.params[name] for row in _compared(record) if name in row.params}))


def _tested(record: SweepRecord) -> tuple[str, ...]:
    return tuple(sorted({digest for row in _compared(record) for part, digest in row.data if part == "test"}))


def _joined(records: Sequence[SweepRecord]) -> SweepRecord:
    trials = _trials(records)
    infos = [record.info for record in records]
    info = SweepInfo(
        name="+".join(info.name for info in infos),
        key=digest([info.key for info in infos]),
        question=f"{_and(info.name for info in infos)}, side by side",
        profile="",
        yaml="\n".join(f"# {info.name}\n{info.yaml}" for info in infos),
        notes=_notes(infos),
        dataset=infos[0].dataset,
        finals=any(info.finals for info in infos),
        labels=tuple(row.label for row in trials),
    )
    run_id = "+".join(record.run_id for record in records)
    started = max(record.started for record in records)
    return records[0]._replace(info=info, run_id=run_id, started=started, trials=tuple(trials))


def _notes(infos: Sequence[SweepInfo]) -> tuple[str, ...]:
    """Every sweep's question and notes, with the sweep's name where not all have them."""
    asked = [f"{info.name} asks: {info.question}" for info in infos if info.question]
    every = dict.fromkeys(note for info in infos for note in info.notes)
    holders = {note: [info.name for info in infos if note in info.notes] for note in every}
    return (*asked, *(note if len(of) == len(infos) else f"{_and(of)}: {note}" for note, of in holders.items()))


def _trials(records: Sequence[SweepRecord]) -> Rows:
    """All trials under the names that they have in common; one that several sweeps name stands there once."""
    named = _renamed_pairs(records)
    named = _renamed_methods(named)
    found: dict[tuple[str, ...], TrialRow] = {}
    taken: dict[tuple[str, ...], dict[str, Label]] = {}
    for rows in named.values():
        alias = _aliases(rows, taken)
        for row in rows:
            label = row.label.model_copy(update=alias.get((row.label.pair, variant(row.label)), {}))
            found.setdefault((*_place(label), variant(label)), row._replace(label=label))
            taken.setdefault(_place(label), {}).setdefault(variant(label), label)
    teachers = [row for row in found.values() if row.label.role == "teacher"]
    return [*teachers, *(row for row in found.values() if row.label.role != "teacher")]


def _place(label: Label) -> tuple[str, ...]:
    return label.key, label.stage, label.role, label.pair


def _aliases(
    rows: Rows, taken: Mapping[tuple[str, ...], Mapping[str, Label]]
) -> dict[tuple[str, str], dict[str, object]]:
    """(pair, method) of a sweep whose trials earlier sweeps know by other names alone → the first of these."""
    found: dict[tuple[str, str], dict[str, object]] = {}
    same: set[tuple[str, str]] = set()
    for row in rows:
        known, own = taken.get(_place(row.label), {}), variant(row.label)
        if own in known:
            same.add((row.label.pair, own))
        elif known:
            first = next(iter(known.values()))
            found.setdefault((row.label.pair, own), {"method": first.method, "axes": first.axes})
    return {place: alias for place, alias in found.items() if place not in same}


def _renamed_pairs(records: Sequence[SweepRecord]) -> dict[str, Rows]:
    """Sweep → its trials, pairs named after the sweep where another's teacher of the same name is another."""
    teachers = _grouped(records_rows(records), lambda row: row.label.pair if row.label.role == "teacher" else None)
    tags = {(title, sweep): tag for title, group in teachers.items() for sweep, tag in _tags(group, _alike).items()}

    def pair(sweep: str, text: str) -> str:
        return text + tags.get((text.split(ARROW)[-1], sweep), "")

    return {
        sweep: [row._replace(label=row.label.model_copy(update={"pair": pair(sweep, row.label.pair)})) for row in rows]
        for sweep, rows in records_rows(records).items()
    }


def _renamed_methods(named: dict[str, Rows]) -> dict[str, Rows]:
    """Sweep → its trials, methods named after the sweep where another's method of the same name is another."""
    methods = _grouped(named, lambda row: row.label.method if row.label.role == "student" else None)
    tags: dict[tuple[str, str], str] = {}
    for group in methods.values():
        loose = _tags(group, _alike_but_axes)
        for title, owners in _grouped(group, lambda row: variant(row.label)).items():
            tight = _tags(owners, _alike) if len(owners) > 1 else {sweep: loose.get(sweep, "") for sweep in owners}
            tags |= {(title, sweep): tag for sweep, tag in tight.items()}

    def renamed(sweep: str, row: TrialRow) -> TrialRow:
        tag = tags.get((variant(row.label), sweep), "") if row.label.role == "student" else ""
        return row._replace(label=row.label.model_copy(update={"method": row.label.method + tag}))

    return {sweep: [renamed(sweep, row) for row in rows] for sweep, rows in named.items()}


def records_rows(records: Sequence[SweepRecord]) -> dict[str, Rows]:
    """Sweep → its trials."""
    return {record.info.name: list(record.trials) for record in records}


def _grouped(named: Mapping[str, Rows], title: Callable[[TrialRow], str | None]) -> Groups:
    found: Groups = {}
    for sweep, rows in named.items():
        for row in rows:
            name = title(row)
            if name is not None:
                found.setdefault(name, {}).setdefault(sweep, []).append(row)
    return found


def _tags(group: Mapping[str, Rows], alike: Callable[[Rows, Rows], bool]) -> dict[str, str]:
    """Sweep → ` [sweep]`, or what is to be put behind the name there; empty where all sweeps mean the same."""
    kinds: list[list[str]] = []
    for sweep, rows in group.items():
        kind = next((kind for kind in kinds if alike(group[kind[0]], rows)), None)
        if kind is None:
            kinds.append([sweep])
        else:
            kind.append(sweep)
    return {sweep: f" [{', '.join(kind)}]" if len(kinds) > 1 else "" for kind in kinds for sweep in kind}


def _alike(left: Rows, right: Rows) -> bool:
    """Whether trials of one name in two sweeps have the same settings: those of a seed are the same trial.

    Where no seed is common to both, the parameters on record decide; candidates of a search are alike if all are.
    """
    keys_l, keys_r = _keys(left), _keys(right)
    if any(row.label.stage for row in (*left, *right)):
        return set(keys_l.items()) == set(keys_r.items())
    common = keys_l.keys() & keys_r.keys()
    if common:
        return all(keys_l[place] == keys_r[place] for place in common)
    return _alike_but_axes(left, right)


def _alike_but_axes(left: Rows, right: Rows) -> bool:
    """Whether two methods differ in nothing but the values of their grids; no where nothing is on record."""
    if any(row.label.stage for row in (*left, *right)):
        return set(_keys(left).items()) == set(_keys(right).items())
    common = {row.label.pair for row in left} & {row.label.pair for row in right}
    axes = {path for row in (*left, *right) for path in row.label.axes}
    one, other = (_settings(rows, common, axes) for rows in (left, right))
    return bool(one) and one == other


def _keys(rows: Rows) -> dict[tuple[object, ...], str]:
    return {(row.label.pair, row.label.seed, row.label.stage, variant(row.label)): row.label.key for row in rows}


def _settings(rows: Rows, pairs: set[str], axes: set[str]) -> frozenset[tuple[str, str, str]]:
    """(pair, parameter, value) of the trials on these pairs; without any, of what a method has on every pair."""
    found = set()
    for row in rows:
        for name, value in row.params.items():
            told = not pairs or row.label.pair in pairs
            general = bool(pairs) or name.startswith(OWN)
            if told and general and name not in NEVER and not name.endswith(tuple(axes) or ("\0",)):
                found.add((row.label.pair if pairs else "", name, value))
    return frozenset(found)


def _and(words: Iterable[object]) -> str:
    """`a, b and c`."""
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last
