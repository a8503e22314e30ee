"""A report that is made again whenever the trials' states have changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from otkd.core.errors import TrackingError

if TYPE_CHECKING:
    from otkd.track.reader import SweepRecord

Look = Callable[[], Sequence["SweepRecord"]]
Rebuild = Callable[[Sequence["SweepRecord"]], bool]

TRIES = 3
"""How often a report that lacks something is made of one state of the sweeps: what failed may have been the store."""


def watch(
    look: Look,
    rebuild: Rebuild,
    is_over: Callable[[Sequence[SweepRecord]], bool],
    tell: Callable[[str], None],
    every_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Rebuild at once, then whenever trials have changed, until the sweeps are over.

    A store that is away is waited for; `tell` hears of it once. A report that lacks something is made again at the next
    looks, TRIES times in all.

    Args:
        look: reads the sweeps' records.
        rebuild: writes the report of these records; says whether it lacks nothing.
        is_over: whether nothing more can come.
        tell: tells a person.
        every_s: seconds between two looks.

    Raises:
        OtkdError: the sweeps cannot be read or the report not written, for other reasons than a store that is away.
    """
    seen: list[object] = []
    left = 0
    away = False
    while True:
        try:
            records = look()
            states = [_states(record) for record in records]
            if states != seen:
                seen, left = states, TRIES
            if left:
                left = 0 if rebuild(records) else left - 1
            if not left and is_over(records):
                return
            away = False
        except Exception as error:
            if not is_away(error):
                raise
            if not away:
                tell(f"waiting for the store: {error}")
            away = True
        sleep(every_s)


def is_away(error: BaseException) -> bool:
    """Whether it says that the store does not answer, or that nothing is in it yet."""
    return isinstance(error, TrackingError) or isinstance(error.__cause__, TrackingError)


def is_settled(record: SweepRecord) -> bool:
    """Whether no trial runs or is missing."""
    return all(row.status not in ("running", "missing") for row in record.trials)


def _states(record: SweepRecord) -> object:
    return record.run_id, sorted((row.label.key, row.label.stage, row.status) for row in record.trials)
