"""What earlier trials of a `runs/` gave and took. A result is read once; what is wanted of it is kept in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from otkd.core import names
from otkd.core.config import StrictModel
from otkd.core.errors import StorageError
from otkd.core.layout import Layout, TrialDir, write_text

KEPT = (names.BEST_VAL_TOP1, names.test("last", names.TEST_TOP1))
"""Final figures that are wanted of a result."""


class Pace(StrictModel):
    """Seconds of training, by image, so that they hold for other numbers of images as well."""

    own_s: float
    """A trial's own steps, per training image."""
    shared_s: float
    """The teacher's pass and the batches, which a cohort needs once, per training image."""
    eval_s: float
    """Evaluation, per validation image; a third of a step where there was none, as it goes forward alone."""


class Earlier(StrictModel):
    """What is wanted of a trial that has ended."""

    stamp: int
    """When its result was written, in ns, as the file system has it."""
    status: str
    metrics: dict[str, float]
    reason: str
    device: str
    kinds: tuple[str, ...] = ()
    """What it is like; see `kinds`."""
    pace: Pace | None
    """None where it has no epochs."""


_KEPT_ALL = TypeAdapter(dict[str, Earlier])


def earlier(layout: Layout, keys: Iterable[str] | None = None) -> dict[str, Earlier]:
    """What trials that have ended gave and took, by key.

    Args:
        keys: of these trials alone; by default of all in this `runs/`. A damaged result counts as none.
    """
    file = layout.cache / "results.json"
    kept, found = _load(file), dict[str, Earlier]()
    for key in _all_keys(layout) if keys is None else keys:
        entry = _current(layout.trial(key), kept.get(key))
        if entry is not None:
            found[key] = entry
    if any(kept.get(key) != entry for key, entry in found.items()):
        with suppress(StorageError):  # the next who asks reads them again
            write_text(file, _KEPT_ALL.dump_json({**kept, **found}).decode())
    return found


def kinds(trial: Mapping[str, Any]) -> tuple[str, ...]:
    """What a trial is like, from the closest likeness to the widest; equal texts say that two take a similar time.

    Args:
        trial: as JSON.
    """
    student, teacher = trial["student"]["name"], (trial.get("teacher") or {}).get("student", {}).get("name", "")
    data, objective = trial["data"]["name"], trial["objective"]
    terms = {term: {name: value for name, value in own.items() if name != "weight"} for term, own in objective.items()}
    networks, recipe = f"{student} ← {teacher} on {data}", _recipe(trial["train"])
    return (
        f"{networks}, {recipe}, {json.dumps(terms, sort_keys=True)}",
        f"{networks}, {recipe}, {' + '.join(sorted(terms))}",
        networks,
        f"{student} on {data}",
    )


def pace_of(val: float, epochs: Sequence[Mapping[str, float]]) -> Pace | None:
    """The mean pace of some epochs of one trial; None where there are none.

    Args:
        val: the trial's validation images: a count, or a share below 1.
        epochs: what was measured in each.
    """
    timed = [metrics for metrics in epochs if metrics.get(names.EPOCH_S) and names.IMAGES_PER_S in metrics]
    images = sum(metrics[names.EPOCH_S] * metrics[names.IMAGES_PER_S] for metrics in timed)
    if not images:
        return None
    own, teacher, batches, evaluation = (
        sum(metrics[name] for metrics in timed) / images
        for name in (names.OWN_S, names.TEACHER_S, names.DATA_S, names.EVAL_S)
    )
    share = _val_share(val, images / len(timed))
    return Pace(own_s=own, shared_s=teacher + batches, eval_s=evaluation / share if share else own / 3)


def mean_pace(paces: Sequence[Pace]) -> Pace:
    """The mean of one or more."""
    return Pace(**{name: fmean(getattr(pace, name) for pace in paces) for name in Pace.model_fields})


def _val_share(val: float, train_images: float) -> float:
    """Validation images for each training image."""
    return val / train_images if val >= 1 else val / (1 - val)


def _recipe(train: Mapping[str, Any]) -> str:
    return f"batch {train['batch_size']}, optimizer {train['optimizer']['name']}, {train['accumulate']} parts"


def _all_keys(layout: Layout) -> list[str]:
    with suppress(OSError):
        return [entry.name for entry in os.scandir(layout.trials) if entry.is_dir()]
    return []


def _load(file: Path) -> dict[str, Earlier]:
    try:
        return _KEPT_ALL.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return {}


def _current(folder: TrialDir, kept: Earlier | None) -> Earlier | None:
    """The kept entry if it is of the result that lies there, else a new one."""
    try:
        stamp = folder.result.stat().st_mtime_ns
        if kept is not None and kept.stamp == stamp:
            return kept
        return _read(folder, stamp)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none there, or not a file of ours
        return None


def _read(folder: TrialDir, stamp: int) -> Earlier:
    result, trial = (json.loads(file.read_bytes()) for file in (folder.result, folder.trial))
    return Earlier(
        stamp=stamp,
        status=result["status"],
        metrics={name: value for name in KEPT if (value := result["metrics"].get(name)) is not None},
        reason=result["reason"],
        device=result["provenance"].get("device", ""),
        kinds=kinds(trial),
        pace=pace_of(trial["data"]["val"], [epoch["metrics"] for epoch in result["epochs"]]),
    )
