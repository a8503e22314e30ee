"""All codes on one problem."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch

from benchmarks.transport.measure import (
    Effort,
    alternate,
    floor,
    limited_tape,
    milliseconds,
    patience,
    peak_mib,
    ratio,
    spread,
    step,
)
from benchmarks.transport.ours import otkd
from benchmarks.transport.problems import FIXED_ITERS, MAX_ITERS, Answer, Problem, Setting
from benchmarks.transport.references import reference
from benchmarks.transport.subjects import SUBJECTS, Peer

TAPE_BYTES = 2**30
"""What a code may keep for its backward pass."""
FIRST_S = 60
"""Patience with a code's first call, which may import or compile."""
WRONG = 0.05
"""Relative error from which on an entropic value is a failure (a kernel that underflowed), not an answer."""


@dataclass
class Measurement:
    """One code on one problem."""

    name: str
    family: str
    label: str
    note: str = ""
    """Why there are no figures."""
    ms: float | None = None
    spread_ms: float | None = None
    repeats: int = 0
    backward: bool = True
    iters: int | None = None
    """Iterations that were asked for, of a code that has no stopping rule."""
    value_error: float | None = None
    marginal_error: float | None = None
    reached: bool = True
    """Within the tolerance, where one is asked for."""
    peak_mib: float | None = None


class Trying(NamedTuple):
    """A code that has answered once and is ready to be timed."""

    measurement: Measurement
    call: Callable[[], Answer]
    first_ms: float


class Bench:
    """Measures one subject and remembers which codes are not worth trying on larger problems."""

    def __init__(self, device: torch.device, effort: Effort) -> None:
        self.device, self.effort = device, effort
        self.hopeless: dict[tuple[str, Setting], list[tuple[Problem, str]]] = {}
        """Where and why a code was too slow or too large."""
        self.known: set[str] = set()
        """Who has been called before."""
        self.missed: set[tuple[str, Setting]] = set()
        """Who reaches the tolerance by no number of iterations."""

    def cell(self, name: str, problem: Problem, setting: Setting) -> dict[str, Any]:
        """All codes on one problem: a record for the tables and the JSON file."""
        subject = SUBJECTS[name]
        ours = Peer("otkd", "", partial(otkd, name=name), subject.value)
        tried = [self._try(peer, problem, setting) for peer in (ours, *subject.peers)]
        started = [entry for entry in tried if isinstance(entry, Trying)]
        times = alternate(self._worth_repeating(started) | {"floor": floor(problem)}, self.effort, self.device)
        for entry in started:
            finish(entry, times)
        measurements = [entry.measurement if isinstance(entry, Trying) else entry for entry in tried]
        fastest = fastest_of(measurements[1:], backward=True)
        self._weigh([entry for entry in started if entry.measurement in (measurements[0], fastest)])
        return record(name, problem, setting, measurements, statistics.median(times["floor"]))

    def _worth_repeating(self, started: Sequence[Trying]) -> dict[str, Callable[[], object]]:
        """Who is neither slow nor off the mark; of the others the first call stands."""
        slow_ms = self.effort.slow_ms
        return {
            entry.measurement.name: entry.call
            for entry in started
            if entry.first_ms <= slow_ms and entry.measurement.reached
        }

    def _weigh(self, entries: Sequence[Trying]) -> None:
        for entry in entries:
            if entry.first_ms < self.effort.slow_ms:
                entry.measurement.peak_mib = peak_mib(entry.call, self.device)

    def _try(self, peer: Peer, problem: Problem, setting: Setting) -> Trying | Measurement:
        """One call, which also warms up, and what can be said of its answer; or why there is none."""
        measurement = Measurement(peer.name, peer.family, peer.label, self._excuse(peer, problem, setting))
        if measurement.note:
            return measurement
        try:
            with patience(self.effort.patience_s if peer.name in self.known else FIRST_S), limited_tape(TAPE_BYTES):
                asked = self._counted(peer, problem, setting)
                measurement.iters = asked.iters if peer.counted else None
                call = partial(step, peer.solve, problem, asked)
                answer, first_ms = self._first(peer, call)
                judge(measurement, answer, peer, problem, setting)
        except Exception as error:  # a code may raise what it likes, and the others shall be measured
            measurement.note = excuse(error)
            if isinstance(error, (TimeoutError, MemoryError)):
                self._give_up(peer, problem, setting, measurement.note)
            return measurement
        if first_ms > self.effort.slow_ms:
            self._give_up(peer, problem, setting, f"> {self.effort.slow_ms / 1000:g} s")
        return Trying(measurement, call, first_ms)

    def _first(self, peer: Peer, call: Callable[[], Answer]) -> tuple[Answer, float]:
        """The answer of a first call and its time, without what a code's very first call imports or compiles."""
        answers: list[Answer] = []
        first_ms = milliseconds(lambda: answers.append(call()), self.device)
        if first_ms > self.effort.slow_ms and peer.name not in self.known:
            first_ms = milliseconds(call, self.device)
        self.known.add(peer.name)
        return answers[0], first_ms

    def _counted(self, peer: Peer, problem: Problem, setting: Setting) -> Setting:
        """The setting with the number of iterations for a code that has no stopping rule."""
        if setting.fixed or not peer.counted:
            return setting
        known = (peer.name, setting)
        iters = None if known in self.missed else enough_iterations(peer, problem, setting)
        if iters is None:
            self.missed.add(known)
        return setting._replace(iters=iters or FIXED_ITERS)

    def _give_up(self, peer: Peer, problem: Problem, setting: Setting, why: str) -> None:
        self.hopeless.setdefault((peer.name, setting), []).append((problem, why))

    def _excuse(self, peer: Peer, problem: Problem, setting: Setting) -> str:
        """Why a code is not tried at all, or nothing."""
        if peer.package and not installed(peer.package):
            return "not installed"
        if peer.package == "flash-sinkhorn" and self.device.type != "cuda":
            return "needs CUDA"
        for other, why in self.hopeless.get((peer.name, setting), []):
            if problem.exceeds(other):
                return f"{why} on {other.label}"
        return ""


def enough_iterations(peer: Peer, problem: Problem, setting: Setting) -> int | None:
    """The smallest number of iterations that keeps the tolerance, to a sixteenth; None where `MAX_ITERS` do not."""

    def suffices(iters: int) -> bool:
        with torch.no_grad():
            plan = peer.solve(problem, setting._replace(iters=iters)).plan
            return plan is not None and problem.marginal_error(plan()) <= (setting.tolerance or 0.0)

    low, high = 4, 8
    while not suffices(high):
        if high == MAX_ITERS:
            return None
        low, high = high, min(2 * high, MAX_ITERS)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def judge(measurement: Measurement, answer: Answer, peer: Peer, problem: Problem, setting: Setting) -> None:
    """Note how good an answer is, and whether it counts."""
    truth = reference(problem, setting, peer.value)
    value = answer.value_B.detach().double()
    measurement.backward = answer.value_B.requires_grad
    if truth is not None:
        measurement.value_error = float((value - truth.to(value)).abs().max() / truth.abs().max())
    if answer.plan is not None:
        with torch.no_grad():
            measurement.marginal_error = problem.marginal_error(answer.plan())
        if setting.tolerance is not None:  # a hundredth for the rounding of the sums
            measurement.reached = measurement.marginal_error <= 1.01 * setting.tolerance
    if setting.epsilon is not None and measurement.value_error is not None:
        measurement.reached &= measurement.value_error < WRONG
    measurement.reached &= bool(value.isfinite().all())


def finish(entry: Trying, times: Mapping[str, list[float]]) -> None:
    own = times.get(entry.measurement.name, [entry.first_ms])
    entry.measurement.ms, entry.measurement.spread_ms = statistics.median(own), spread(own)
    entry.measurement.repeats = len(own)


def excuse(error: Exception) -> str:
    """An error in one short line."""
    limit = isinstance(error, (TimeoutError, MemoryError))
    text = str(error) if limit else f"{type(error).__name__}: {error}"
    return text.splitlines()[0][:60]


def installed(package: str) -> str:
    """The version of a package, empty where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def fastest_of(codes: Sequence[Measurement], backward: bool) -> Measurement | None:
    """The fastest of those that arrived, with or without a backward pass."""
    arrived = [(code.ms, code) for code in codes if code.ms is not None and code.reached and code.backward == backward]
    return min(arrived, key=lambda pair: pair[0], default=(0.0, None))[1]


def record(
    name: str, problem: Problem, setting: Setting, measurements: Sequence[Measurement], floor_ms: float
) -> dict[str, Any]:
    """A cell as it goes into the JSON file."""
    ours, *peers = measurements
    own_ms = ours.ms if ours.reached else None
    fastest, forward = (fastest_of(peers, backward) for backward in (True, False))
    return {
        "solver": name,
        "problem": problem.label,
        "n": problem.x_BND.shape[-2],
        "d": problem.x_BND.shape[-1],
        "problems": problem.lead.numel(),
        **setting._asdict(),
        "otkd": asdict(ours),
        "peers": [asdict(peer) for peer in peers],
        "fastest": fastest.name if fastest else None,
        "peer_over_otkd": ratio(fastest.ms if fastest else None, own_ms),
        "forward_only": forward.name if forward else None,
        "floor_ms": floor_ms,
        "otkd_over_floor": ratio(own_ms, floor_ms),
    }
