"""What lies among the artifacts of a trial's run."""

from __future__ import annotations

import pandas as pd
from pydantic import ValidationError

from dashboards.source import Sweep
from otkd.core.confusion import Confusion
from otkd.core.records import Picture, Pictures
from otkd.report.files import PER_CLASS, by_label

CONFUSION, SNAPSHOTS, RESOLVED = "confusion.json", "snapshots.json", "trial.yaml"


def confusion(sweep: Sweep, row: pd.Series) -> Confusion | None:
    """Counts of a trial's test images by class; None where there are none."""
    text = sweep.file(row, CONFUSION)
    try:
        return Confusion.model_validate_json(text) if text else None
    except ValidationError:
        return None


def pictures(sweep: Sweep, row: pd.Series) -> dict[str, dict[str, Picture]]:
    """The matrices that a trial's terms have kept (transport plans): name → epoch, in order → matrix."""
    text = sweep.file(row, SNAPSHOTS)
    try:
        kept = Pictures.model_validate_json(text) if text else Pictures(pictures={})
    except ValidationError:
        return {}
    found: dict[str, dict[str, Picture]] = {}
    for epoch, made in [*((str(one.epoch), one.pictures) for one in kept.earlier), ("last", kept.pictures)]:
        for name, picture in ((name, one) for name, one in made.items() if one.matrix and one.matrix[0]):
            found.setdefault(name, {})[epoch] = picture
    return found


def settings(sweep: Sweep, row: pd.Series) -> str | None:
    """The trial with every default filled in, as YAML."""
    return sweep.file(row, RESOLVED)


def class_names(sweep: Sweep, rows: pd.DataFrame) -> dict[int, str]:
    """Label → name of the classes, as the first trial that has them says; empty where none does."""
    for _, row in rows[rows["status"] == "finished"].iterrows():
        text = sweep.file(row, PER_CLASS)
        if text:
            return {label: one.name for label, one in enumerate(by_label(text))}
    return {}
