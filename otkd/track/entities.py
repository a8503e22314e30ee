"""What trials say as MLflow's metrics, parameters and tags, in batches as large as MLflow takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Metric, Param, RunTag

from otkd.core import names
from otkd.core.records import EpochRecord, Label, TrialResult
from otkd.core.trial import Trial

ENTITIES_PER_CALL, OF_A_KIND = 1000, 100
"""What MLflow takes at once: metrics, parameters and tags together; parameters alone, and tags alone."""

PARAM_LIMIT, TAG_LIMIT, NAME_LIMIT = 6000, 8000, 250
"""Characters of a value, and of a run's name, that MLflow keeps."""


@dataclass
class Load:
    """What goes to MLflow in one call."""

    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: list[RunTag] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)
    """Marker metric and epoch of each record in it."""

    def __len__(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)

    def takes(self, more: Load) -> bool:
        """Whether MLflow takes both at once."""
        kinds = (len(self.params) + len(more.params), len(self.tags) + len(more.tags))
        return len(self) + len(more) <= ENTITIES_PER_CALL and max(kinds) <= OF_A_KIND

    def add(self, more: Load) -> None:
        for mine, other in zip(self._lists(), more._lists(), strict=True):
            mine.extend(other)

    def _lists(self) -> tuple[list[Any], ...]:
        return self.metrics, self.params, self.tags, self.marks


def loads(pieces: Iterable[Load]) -> Iterator[Load]:
    """Pieces in order, joined as far as MLflow takes them at once; none is split."""
    joined = Load()
    for piece in pieces:
        if len(joined) and not joined.takes(piece):
            yield joined
            joined = Load()
        joined.add(piece)
    if len(joined):
        yield joined


def settings(trial: Trial) -> dict[str, str]:
    """A trial's settings as parameters: dotted path → value."""
    return {safe(path): value[:PARAM_LIMIT] for path, value in flat(trial.model_dump(mode="json"))}


def epoch_load(record: EpochRecord) -> Load:
    """An epoch, with the time at which it ended."""
    metrics = [
        Metric(metric_name(record.stage, name), value, millis(record.time), record.epoch)
        for name, value in record.metrics.items()
    ]
    return Load(metrics, marks=[(marker(record), record.epoch)])


def figures_load(result: TrialResult, label: Label | None) -> Load:
    """A trial's final figures, at its last epoch."""
    step = max((r.epoch for r in result.epochs if r.stage == "train"), default=0)
    metrics = set_apart(result.metrics) if label is not None and label.is_candidate else result.metrics
    return Load([Metric(safe(name), value, millis(result.ended), step) for name, value in metrics.items()])


def set_apart(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of a search's candidate: those on the test set, which choose nothing, get a name of their own."""
    return {names.SEARCHED * name.startswith(names.TEST) + name: value for name, value in metrics.items()}


def closing_tags(result: TrialResult) -> dict[str, str]:
    """What a run is tagged with when its trial has ended."""
    tags = {names.TAG_PROVENANCE + safe(name): value for name, value in result.provenance.items()}
    tags |= {names.TAG_STATUS: result.status, names.TAG_REASON: result.reason}
    tags |= {"mlflow.source.git.commit": result.provenance.get("commit", "")}
    # PostgreSQL takes no text with a zero byte, which an error's words may have
    return {name: value.replace("\x00", "")[:TAG_LIMIT] for name, value in tags.items() if value}


def marker(record: EpochRecord) -> str:
    """The metric whose history tells which epochs a run has: a record is written whole, so any of it will do."""
    return metric_name(record.stage, min(record.metrics))


def metric_name(stage: str, name: str) -> str:
    """Names of the training proper stay; those of a stage before it get its name in front."""
    return safe(name if stage == "train" else f"{stage}/{name}")


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as dotted path → text; what is not text is written as JSON."""
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def safe(name: str) -> str:
    """A name with MLflow's alphabet and length."""
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)[:250]


def millis(seconds: float) -> int:
    return int(seconds * 1000)
