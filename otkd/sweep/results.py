"""How trials have ended, as their folders in `runs/` say. Imports neither torch nor ray."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from otkd.core.errors import CheckpointError
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Trial


def result_of(trial: Trial, layout: Layout) -> TrialResult | None:
    """The result of a trial that has ended in this `runs/` directory, or None.

    Raises:
        CheckpointError: it is damaged.
    """
    return _read(layout.trial(trial.key).result)


def failure_of(trial: Trial, layout: Layout) -> TrialResult | None:
    """How a trial has failed that has not begun again since, or None. Errors as for `result_of`."""
    return _read(layout.trial(trial.key).failed)


def is_sound(teacher: Trial, layout: Layout) -> bool:
    """Whether others can learn from a trial: it has finished."""
    result = result_of(teacher, layout)
    return result is not None and result.status == "finished"


def _read(path: Path) -> TrialResult | None:
    if not path.exists():
        return None
    try:
        return TrialResult.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError:
        raise CheckpointError(f"{path} is damaged; delete its folder to train that trial again.") from None
