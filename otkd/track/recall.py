"""What a sweep's files say of its trials: its journal, which hears everything first, and the trials' folders."""

from __future__ import annotations

from collections.abc import Sequence

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Trial
from otkd.track.events import Behind, Event
from otkd.track.journal import Journal


class Recall:
    """Reads back what had no room in memory.

    Args:
        sweep: the sweep's name.
    """

    def __init__(self, layout: Layout, sweep: str) -> None:
        self.layout, self.journal = layout, Journal(layout.records / f"{sweep}.jsonl")

    def has(self, event: Event) -> bool:
        """Whether files have the epochs of which an event tells."""
        return self.journal.path.exists() or self.layout.trial(event.key).result.exists()

    def records(self, part: Sequence[Event]) -> list[EpochRecord]:
        """The epochs of which events tell, those for which there was no room among them.

        Raises:
            TrackingError: some cannot be read back.
        """
        records: list[EpochRecord] = []
        for event in part:
            if isinstance(event, EpochRecord):
                records.append(event)
            elif isinstance(event, Behind):
                records += self._epochs(event)
        return records

    def whole(self, part: Sequence[Event], result: TrialResult) -> TrialResult:
        """A result with its epochs, which may have had no room. Errors as for `records`."""
        behind = [event for event in part if isinstance(event, Behind)]
        if result.epochs or not behind:
            return result
        return result.model_copy(update={"epochs": tuple(self._epochs(behind[-1]))})

    def trial(self, key: str) -> Trial | None:
        """The trial as its folder tells; None where it does not."""
        try:
            return Trial.model_validate_json(self.layout.trial(key).trial.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or it is damaged
            return None

    def _epochs(self, behind: Behind) -> Sequence[EpochRecord]:
        """A trial's epochs from its result, which has them all, or from the journal."""
        try:
            text = self.layout.trial(behind.key).result.read_text(encoding="utf-8")
            return TrialResult.model_validate_json(text).epochs
        except (OSError, ValueError):  # there is none, or it is damaged
            found = self.journal.epochs(behind.key)
        missing = behind.epochs - {(record.stage, record.epoch) for record in found}
        if missing:
            raise TrackingError(f"{len(missing)} epochs were to be read from {self.journal.path} and are not there.")
        return found
