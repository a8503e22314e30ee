"""What is tried next: a grid's points, random draws or optuna's suggestions; and the log of what was tried.

The log, `runs/search/<sweep key>.jsonl`, has a line for each configuration before it begins and one when it ends: the
same command tries the same ones first and lets decisions that were taken stand. Imports neither torch nor ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from otkd.core import names
from otkd.core.config import StrictModel
from otkd.core.errors import StorageError
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord
from otkd.core.seeds import derive
from otkd.sweep.ranges import Choice, Range
from otkd.sweep.search import Search, Study, draw, point

MAIN = "train"
"""The stage that configurations are judged by."""


class Report(NamedTuple):
    """How a configuration stands when all its seeds have trained an epoch."""

    epoch: int
    """Of the main stage, from 1."""
    value: float
    """val/top1 after that epoch, mean over seeds."""
    best: float
    """The mean over seeds of the best val/top1 of each so far."""
    hours: float
    """Training and validation so far, summed over seeds."""


def report_of(seeds: Sequence[Sequence[EpochRecord]]) -> Report:
    """How a configuration stands by what its seeds have trained; epoch 0 where one has come to none of the main stage.

    Args:
        seeds: the epochs of each, in order, those of stages before the main one included.
    """
    mains = [[record.metrics[names.VAL_TOP1] for record in own if record.stage == MAIN] for own in seeds]
    epoch = min(map(len, mains))
    curves = [main[:epoch] for main in mains]
    seconds = sum(record.metrics[names.EPOCH_S] + record.metrics[names.EVAL_S] for own in seeds for record in own)
    value, best = (fmean(curve[-1] for curve in curves), fmean(map(max, curves))) if epoch else (0.0, 0.0)
    return Report(epoch, value, best, seconds / 3600)


class Begun(StrictModel):
    """A configuration is about to be tried."""

    event: Literal["begin"] = "begin"
    study: str
    """Title of its study."""
    number: int
    values: dict[str, Any]


class Ending(StrictModel):
    """A configuration has ended."""

    event: Literal["end"] = "end"
    study: str
    number: int
    status: Literal["finished", "diverged", "failed", "pruned"]
    reports: tuple[Report, ...] = Field(strict=False)
    """How it stood after each epoch."""
    reason: str = ""


class Over(StrictModel):
    """Studies have come to their end."""

    event: Literal["over"] = "over"
    studies: tuple[str, ...] = Field(strict=False)
    """Their titles."""
    rules: str
    """Digest of the `search:` that it followed."""


Line = Annotated[Begun | Ending | Over, Field(discriminator="event")]
LINE: TypeAdapter[Begun | Ending | Over] = TypeAdapter(Line)


class Log:
    """The lines of one search.

    Args:
        key: of the sweep.
    """

    def __init__(self, layout: Layout, key: str) -> None:
        self.path: Path = layout.root / "search" / f"{key}.jsonl"

    def read(self) -> list[Begun | Ending | Over]:
        """All whole lines, in order; one that a crash cut short, and what is not ours, is passed over."""
        if not self.path.exists():
            return []
        whole = self.path.read_bytes().rpartition(b"\n")[0]
        return [line for text in whole.splitlines() if (line := _parsed(text)) is not None]

    def append(self, line: Begun | Ending | Over) -> None:
        """Add a line.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                file.write((b"\n" if _is_torn(file) else b"") + line.model_dump_json().encode() + b"\n")
        except OSError as error:
            way_out = "Free some space or name another --runs."
            raise StorageError(f"cannot write {self.path}: {error.strerror or error}. {way_out}") from error


def _is_torn(file: BinaryIO) -> bool:
    """Whether its last line was cut short."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _parsed(text: bytes) -> Begun | Ending | Over | None:
    try:
        return LINE.validate_json(text)
    except ValidationError:
        return None


class Proposer(Protocol):
    """Suggests the configurations of one study."""

    def propose(self, number: int) -> dict[str, Any]:
        """The values of configuration `number`, by dotted path."""

    def recall(self, number: int, values: dict[str, Any]) -> None:
        """These were proposed by an earlier session."""

    def tell(self, number: int, ending: Ending | None) -> None:
        """How a configuration ended; None for one that is like another and was not tried."""


class Listed:
    """A grid's points in order, or random draws: neither depends on what was found."""

    def __init__(self, search: Search, study: Study) -> None:
        self._study, self._seed = study, search.seed
        self._fixed = search.kind == "grid" or not study.space

    def propose(self, number: int) -> dict[str, Any]:
        return point(self._study, number) if self._fixed else draw(self._study, number, self._seed)

    def recall(self, number: int, values: dict[str, Any]) -> None:
        pass

    def tell(self, number: int, ending: Ending | None) -> None:
        pass


class Optuna:
    """Optuna's TPE sampler, which learns from what has ended and keeps away from what is being tried.

    Each suggestion has a seed of its own, so it follows from the seed, its number, and what was tried before.
    """

    def __init__(self, search: Search, study: Study) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study, self._seed = study, search.seed
        self._distributions = {path: _distribution(range_) for path, range_ in study.space}
        self._optuna = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}

    def propose(self, number: int) -> dict[str, Any]:
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        seed = derive(self._seed, self._study.title, number) % 2**32
        self._optuna.sampler = TPESampler(seed=seed, constant_liar=True)
        asked = self._optuna.ask(self._distributions)
        values = {path: _value(range_, asked.params[path]) for path, range_ in self._study.space}
        self._optuna.tell(asked, state=TrialState.FAIL)  # passed over: what is tried are its rounded numbers
        self.recall(number, values)
        return values

    def recall(self, number: int, values: dict[str, Any]) -> None:
        self._optuna.enqueue_trial({path: _parameter(range_, values[path]) for path, range_ in self._study.space})
        self._asked[number] = self._optuna.ask(self._distributions)

    def tell(self, number: int, ending: Ending | None) -> None:
        from optuna.trial import TrialState

        asked = self._asked.pop(number)
        reports = () if ending is None else ending.reports
        if ending is not None and ending.status == "finished":
            self._optuna.tell(asked, reports[-1].best)
        elif ending is not None and ending.status == "pruned" and reports:
            for report in reports:
                asked.report(report.value, report.epoch)
            self._optuna.tell(asked, state=TrialState.PRUNED)
        else:
            self._optuna.tell(asked, state=TrialState.FAIL)


def proposer(search: Search, study: Study) -> Proposer:
    """Who suggests the configurations of a study."""
    return Optuna(search, study) if search.kind == "optuna" and study.space else Listed(search, study)


def rounds(orders: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    """The first configuration of each study, then the second of each, …: all have come equally far at any time."""
    for place in range(max(map(len, orders.values()), default=0)):
        yield from ((title, order[place]) for title, order in orders.items() if place < len(order))


def _distribution(range_: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(range_, Choice):
        return CategoricalDistribution(list(range(len(range_.values))))
    if range_.whole:
        return IntDistribution(int(range_.low), int(range_.high), log=range_.log)
    return FloatDistribution(range_.low, range_.high, log=range_.log)


def _value(range_: Range, parameter: Any) -> Any:
    return range_.values[parameter] if isinstance(range_, Choice) else range_.fit(parameter)


def _parameter(range_: Range, value: Any) -> Any:
    if isinstance(range_, Choice):
        return range_.values.index(value)
    return int(value) if range_.whole else float(value)
