"""The runs that a store has of trials when a sweep begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from otkd.core import names
from otkd.core.records import ENDED
from otkd.track.store import Store, pages, tagged

if TYPE_CHECKING:
    from mlflow.entities import Run

SETTLED = (*ENDED, "pruned")
"""States after which a run has everything, and stays as it is until somebody goes on with the trial."""


@dataclass(frozen=True)
class Found:
    """A trial's run as it was left."""

    id: str
    state: str
    """How the trial ended; empty when it did not, or when its run is not complete."""
    ended: int = 0
    """When the run ended, in milliseconds since 1970."""


def found_in(store: Store) -> dict[str, Found]:
    """Trial key → its run, for every trial that the store has.

    All of them in one go: to ask for each trial when it begins takes longer than writing a dozen of its epochs.
    """
    found: dict[str, Found] = {}
    for run in pages(store, tagged(names.TAG_KIND, "sweep", "!=")):
        key, one = run.data.tags.get(names.TAG_KEY, ""), as_found(run)
        # several runs of a trial (two drivers at once): one that has ended counts, else the newest, which comes first
        if key not in found or (one.state in ENDED and found[key].state not in ENDED):
            found[key] = one
    return found


def as_found(run: Run) -> Found:
    """What a run says of how its trial ended; tags of a run that is not ended may be ahead of the rest."""
    ended = run.info.status in ("FINISHED", "FAILED")
    return Found(run.info.run_id, run.data.tags.get(names.TAG_STATUS, "") if ended else "", run.info.end_time or 0)
