"""What a trial's page in MLflow has besides its metrics: note, files, figures, images' digests, and its network.

Everything may be done again without being there twice. The network is part of the record; all else is decoration, and
what cannot be drawn or registered is no reason to leave a run open.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.utils.yaml_utils import write_yaml

from otkd.core import datasets, names
from otkd.core.confusion import Confusion
from otkd.core.layout import TrialDir
from otkd.core.records import Label, TrialResult
from otkd.core.trial import Data, Trial
from otkd.track.curves import curves
from otkd.track.inputs import dataset_inputs
from otkd.track.notes import Links, link, trial_note
from otkd.track.picture import class_name, confusion_map, heat_maps, save
from otkd.track.registry import register
from otkd.track.store import Store, answers, search, tagged
from otkd.track.views import keep_view
from otkd.track.weights import keep_model

logger = logging.getLogger("otkd.track")

CURVES, RESOLVED, ENVIRONMENT, CONFUSION, PER_CLASS = (
    "learning-curves.svg",
    "trial.yaml",
    "environment.json",
    "confusion.png",
    "per-class.csv",
)


def note_of(store: Store, trial: Trial, result: TrialResult, label: Label | None, parent: str) -> str:
    """The note of a trial's run, which has the name `notes.NOTE`; empty where none can be made.

    Args:
        label: the sweep's name for the trial, where it has one.
        parent: run id of the sweep.

    Raises:
        Exception: the store is away.
    """
    with _decoration(store, result.key, "note"):
        return _note(store, trial, result, label, parent)
    return ""


def attach(
    store: Store,
    run_id: str,
    files: ArtifactRepository,
    trial: Trial,
    result: TrialResult,
    label: Label | None,
    folder: TrialDir,
) -> None:
    """Give a trial's run all else that stands above.

    Args:
        files: where the run's files go.
        label: the sweep's name for the trial, where it has one.
        folder: where the trial's weights, pictures and counts lie.

    Raises:
        Exception: the store is away, or refuses the network.
    """
    with _decoration(store, result.key, "page"):
        keep_view(store)
        store.client.log_inputs(run_id, dataset_inputs(trial.data))
        with tempfile.TemporaryDirectory(prefix="otkd-page-") as page:
            _write_all(Path(page), trial, result, label, folder)
            files.log_artifacts(page)
    if result.status == "finished":
        _network(store, run_id, trial, result, label, folder)


def _network(
    store: Store, run_id: str, trial: Trial, result: TrialResult, label: Label | None, folder: TrialDir
) -> None:
    """Keep and register the weights that were best on validation images, or the last where there are none."""
    weights = folder.best if folder.best.exists() else folder.last
    if not weights.exists():
        return
    role = label.role if label else "student" if trial.teacher else "teacher"
    kept = keep_model(store, run_id, trial, weights, role)
    if label is not None and label.is_candidate:
        return  # the winner, trained again, is what others are to find
    with _decoration(store, result.key, "registered model"):
        register(store, run_id, kept, trial, result, label, weights.stem)


@contextmanager
def _decoration(store: Store, key: str, what: str) -> Iterator[None]:
    """Go on without what a store in good health refuses, or what cannot be drawn.

    Raises:
        Exception: the store is away; the whole can be done again.
    """
    try:
        yield
    except Exception as error:
        if not answers(store):
            raise
        reason = (str(error).splitlines() or [""])[0][:300]
        logger.warning("%s has no %s in MLflow: %s: %s", key, what, type(error).__name__, reason)


def _note(store: Store, trial: Trial, result: TrialResult, label: Label | None, parent: str) -> str:
    teacher = trial.teacher and _run_of(store, trial.teacher.key)
    links = Links(link(store.experiment, parent), link(store.experiment, teacher or ""))
    return trial_note(trial, result, label, _name_of(store, parent), links)


def _run_of(store: Store, key: str) -> str:
    """The run of a trial; empty when it has none."""
    try:
        return _found_run(store, key)
    except LookupError:
        return ""


@lru_cache(maxsize=4096)
def _found_run(store: Store, key: str) -> str:
    """Raises `LookupError` when there is none, which is not remembered: it may come."""
    runs = search(store, tagged(names.TAG_KEY, key))
    if not runs:
        raise LookupError(key)
    return runs[0].info.run_id


@lru_cache(maxsize=64)
def _name_of(store: Store, parent: str) -> str:
    """The sweep's name."""
    return store.client.get_run(parent).data.tags.get(names.TAG_SWEEP, "sweep")


def _write_all(files: Path, trial: Trial, result: TrialResult, label: Label | None, folder: TrialDir) -> None:
    """Everything of the trial that is a file, into one folder: the store gets it in one go."""
    write_yaml(str(files), RESOLVED, trial.model_dump(mode="json"), sort_keys=False)
    _write(files / ENVIRONMENT, json.dumps(result.provenance, indent=1, ensure_ascii=False))
    _write(files / CURVES, curves(result.epochs, label.title if label else result.key))
    if folder.confusion.exists():
        _write_confusion(files, folder.confusion.read_text(encoding="utf-8"), _class_names(trial.data))
    if folder.snapshots.exists():
        text = folder.snapshots.read_text(encoding="utf-8")
        _write(files / folder.snapshots.name, text)
        for name, figure in heat_maps(text, result.key):
            save(figure, files / f"{name.replace('/', '-')}.png")


def _write_confusion(files: Path, text: str, class_names: Sequence[str]) -> None:
    confusion = Confusion.model_validate_json(text)
    _write(files / "confusion.json", text)
    _write(files / PER_CLASS, per_class(confusion, class_names))
    save(confusion_map(confusion, class_names), files / CONFUSION)


def _class_names(data: Data) -> tuple[str, ...]:
    return data.card.names if datasets.known(data.name) else ()


def per_class(confusion: Confusion, class_names: Sequence[str] = ()) -> str:
    """A table as CSV: each class with its accuracy, the class it was mistaken for most, and its test images."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", "top-1 %", "mistaken most for", "times", "images", "right"])
    for row in confusion.by_class():
        top1 = "" if row.top1 is None else f"{row.top1:.2f}"
        worst = "" if row.mistaken_for is None else class_name(row.mistaken_for, class_names)
        writer.writerow([class_name(row.label, class_names), top1, worst, row.mistaken, row.images, row.right])
    return out.getvalue()


def _write(path: Path, text: str | None) -> None:
    if text is not None:
        path.write_text(text, encoding="utf-8")
