"""Images per second of all loops on one pair, and what they say of each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.training.loops import Classic, Engine, Floor, Loop
from benchmarks.training.scene import COHORT, METHODS, Scene, Terms
from benchmarks.transport.measure import milliseconds, spread
from benchmarks.transport.tables import Table, number

SIZES = (1, 2, 4, 8)
"""Students in a cohort whose weights of kd differ."""
SIX = "cohort of six"
Times = Mapping[str, Sequence[float]]


class Clocked(NamedTuple):
    """What was measured on one pair."""

    pair: str
    images: int
    """Of a round of every loop."""
    times: Times
    """Milliseconds of a round by loop."""
    deviation: dict[str, float]
    """By method: of the engine's mean loss from the floor's on the same batches, relative."""

    def ms(self, *loops: str) -> float:
        """Median of a round, added up over loops."""
        return sum(statistics.median(self.times[loop]) for loop in loops)

    def rate(self, loop: str) -> float:
        """Images per second."""
        return 1000 * self.images / self.ms(loop)


def clock(scene: Scene, rounds: int) -> Clocked:
    """Build all loops of a pair, warm them up and time them in turn."""
    scene.train_teacher()
    loops: dict[str, Loop] = {}
    deviation = {}
    for method, terms in COHORT.items():
        engine = Engine(scene, [terms])
        loops |= {named("engine", method): engine, named("classic", method): Classic(scene, terms)}
        if method in METHODS:
            plain = Floor(scene, terms, fast=False)
            loops |= {named("plain floor", method): plain, named("fast floor", method): Floor(scene, terms, fast=True)}
            deviation[method] = deviates(scene, terms, engine.losses[0])
    loops[SIX] = Engine(scene, list(COHORT.values()))
    loops |= {cohort_of(size): Engine(scene, weights_of_kd(size)) for size in SIZES}
    alternate(loops, 1, scene.place.device)  # warms up
    times = alternate(loops, rounds, scene.place.device)
    return Clocked(" ← ".join(scene.pair), len(scene.splits.train.labels), times, deviation)


def alternate(loops: Mapping[str, Loop], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each loop, in rounds over all of them."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            with loop.round() as call:
                times[name].append(milliseconds(call, device))
    return times


def deviates(scene: Scene, terms: Terms, loss: float) -> float:
    """How far a mean loss is from that of the plain floor on the batches of the engine's first epoch, relative."""
    truth = Floor(scene, terms, fast=False).mean_loss(scene.batches.epoch(1))
    return abs(loss - truth) / abs(truth)


def weights_of_kd(count: int) -> list[Terms]:
    """That many objectives of ce and kd."""
    return [{"ce": {"weight": 0.1}, "kd": {"weight": 0.9 + 0.1 * index}} for index in range(count)]


def named(loop: str, method: str) -> str:
    return f"{loop}: {method}"


def cohort_of(size: int) -> str:
    return f"cohort of {size} × kd"


def tables(clocked: Clocked) -> Iterator[Table]:
    """A pair's tables."""
    yield shown(f"{clocked.pair}: one student", [alone(clocked, method) for method in METHODS])
    yield shown(f"{clocked.pair}: cohorts of kd", [scaled(clocked, size) for size in SIZES])
    yield shown(f"{clocked.pair}: six methods, each on as many images", [six(clocked)])


def alone(clocked: Clocked, method: str) -> dict[str, Any]:
    """A method by itself."""
    rate = {loop: clocked.rate(named(loop, method)) for loop in ("engine", "plain floor", "fast floor", "classic")}
    engine_ms = clocked.times[named("engine", method)]
    return {
        "method": method,
        **{f"{loop} images/s": value for loop, value in rate.items()},
        "engine ± %": 100 * spread(engine_ms) / statistics.median(engine_ms),
        "/ plain floor": rate["engine"] / rate["plain floor"],
        "/ fast floor": rate["engine"] / rate["fast floor"],
        "/ classic": rate["engine"] / rate["classic"],
        "loss off by": clocked.deviation[method],
    }


def scaled(clocked: Clocked, size: int) -> dict[str, Any]:
    """A cohort's images times members, against one of one."""
    rate = size * clocked.rate(cohort_of(size))
    return {"members": str(size), "images/s × members": rate, "/ one": rate / clocked.rate(cohort_of(1))}


def six(clocked: Clocked) -> dict[str, Any]:
    """Seconds of six methods together, one by one, and one by one in the classic loop."""
    together, engine, classic = (
        clocked.ms(*loops) / 1000
        for loops in ([SIX], [named("engine", name) for name in COHORT], [named("classic", name) for name in COHORT])
    )
    return {
        "cohort s": together,
        "one by one s": engine,
        "classic s": classic,
        "one by one / cohort": engine / together,
        "classic / cohort": classic / together,
    }


def shown(title: str, records: list[dict[str, Any]]) -> Table:
    """Records as a table."""
    return Table(title, [{key: text(value) for key, value in record.items()} for record in records], records)


def text(value: object) -> str:
    return value if isinstance(value, str) else number(value if isinstance(value, (int, float)) else None)
