"""The runs that a store has of trials when a sweep begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from otkd.core import names
from otkd.core.layout import Layout, write_text
from otkd.core.records import ENDED
from otkd.track.store import Store, own, pages, tagged

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
    said: str = ""
    """What its tag says of how the trial stands, complete or not."""
    ended: int = 0
    """When the trial ended, in milliseconds since 1970; 0 when it did not, or when its run was cut short."""
    searched: bool = False
    """It has the figures of a search's candidate: none on the test set by their plain names."""


def found_in(store: Store, layout: Layout) -> dict[str, Found]:
    """Trial key → its run, for every trial that the store has, but for what others have in training.

    All of them in one go: to ask for each trial when it begins takes longer than writing a dozen of its epochs.
    """
    found: dict[str, Found] = {}
    for run in pages(store, tagged(names.TAG_KIND, "sweep", "!=")):
        key, one = run.data.tags.get(names.TAG_KEY, ""), as_found(run)
        if not key or anothers(run, store, layout):
            continue
        # several runs of a trial (two drivers at once): one that has ended counts, else the newest, which comes first
        if key not in found or (one.state in ENDED and found[key].state not in ENDED):
            found[key] = one
    return found


def as_found(run: Run) -> Found:
    """What a run says of how its trial ended; tags of a run that is not ended may be ahead of the rest."""
    tags, figures = run.data.tags, run.data.metrics
    whole = run.info.status in ("FINISHED", "FAILED") and not tags.get(names.TAG_FILES)
    apart, plain = (any(name.startswith(head) for name in figures) for head in (names.SEARCHED, names.TEST))
    said = tags.get(names.TAG_STATUS, "")
    ended = run.info.end_time if run.info.status in ("FINISHED", "FAILED") else 0
    return Found(run.info.run_id, said if whole else "", said, ended or 0, apart and not plain)


def owner(layout: Layout) -> str:
    """Who trains from this folder: an id that its runs have in every store, made once."""
    file = layout.root / ".owner"
    if not file.exists():
        write_text(file, uuid4().hex)
    return file.read_text(encoding="utf-8")


def anothers(run: Run, store: Store, layout: Layout) -> bool:
    """Whether a run is in training from another folder; one that does not say from where counts as ours."""
    if run.info.status != "RUNNING" or own(store, layout):
        return False
    return run.data.tags.get(names.TAG_OWNER, "") not in ("", owner(layout))
