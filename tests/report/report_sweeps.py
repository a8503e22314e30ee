"""Sweeps made by hand, so that every expected number can be computed beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from otkd.core import names
from otkd.core.records import Label, SweepInfo
from otkd.track.reader import SweepRecord, TrialRow

PAIRS = (("wrn_16_2", "wrn_40_2"), ("resnet8x4", "resnet32x4"))
TERMS = {
    "student": ("ce",),
    "kd": ("ce", "kd"),
    "ot": ("ce", "transport"),
    "ot+kd": ("ce", "kd", "transport"),
}
TOP1 = {"student": 73.0, "kd": 74.5, "ot": 74.8, "ot+kd": 75.4}
SECONDS = {"student": 10.0, "kd": 14.0, "ot": 21.0, "ot+kd": 22.0}
OFFSETS = (0.0, 0.31, -0.27)


class Sweep:
    """Builds a record trial by trial."""

    def __init__(self, dataset: str = "cifar100", question: str = "Does transport beat KD?", val: str = "0.0") -> None:
        self.dataset, self.question, self.val = dataset, question, val
        self.rows: list[TrialRow] = []
        self.lost: list[Label] = []

    def teacher(self, network: str, top1: float = 75.61, title: str = "", stage: Any = "") -> None:
        label = self._label("teacher", "teacher", title or network, network, "", 0, {}, stage)
        self._row(label, "finished", ("ce",), {**_sizes(2.2e6), names.test("last", "top1"): top1})

    def student(
        self,
        method: str,
        top1: float = math.nan,
        seed: int = 0,
        pair: tuple[str, str] = PAIRS[0],
        *,
        status: str = "finished",
        terms: tuple[str, ...] | None = None,
        axes: dict[str, Any] | None = None,
        seconds: float = 10.0,
        reason: str = "",
        taught_by: str = "",
        stage: Any = "",
        **metrics: float,
    ) -> None:
        label = self._label("student", method, f"{pair[0]} ← {taught_by or pair[1]}", *pair, seed, axes or {}, stage)
        figures = {**_sizes(0.7e6), names.EPOCH_S: seconds, names.IMAGES_PER_S: 5e4 / seconds, names.PEAK_MIB: 900.0}
        if not math.isnan(top1):
            figures[names.test("last", "top1")] = top1
        self._row(label, status, terms or TERMS[method], figures | metrics, reason)

    def missing(self, method: str, seed: int, pair: tuple[str, str] = PAIRS[0]) -> None:
        label = self._label("student", method, f"{pair[0]} ← {pair[1]}", *pair, seed, {}, "")
        self.rows.append(TrialRow(label, "", "missing", {}, {}, {}))

    def record(self) -> SweepRecord:
        labels = tuple(row.label for row in self.rows)
        info = SweepInfo(
            name="demo",
            key="0123456789abcdef",
            question=self.question,
            profile="quick",
            yaml="name: demo\nmethods:\n  student: {ce: 1}\n",
            notes=("All training images, last epoch, as the literature does.",),
            dataset=self.dataset,
            labels=labels,
        )
        return SweepRecord(info, "run-of-the-sweep", 1.76e9, tuple(self.rows))

    def _label(
        self, role: Any, method: str, pair: str, student: str, teacher: str, seed: int, axes: dict[str, Any], stage: Any
    ) -> Label:
        key = f"{len(self.rows):016x}"
        fields = {"student": student, "teacher": teacher, "seed": seed, "axes": axes, "stage": stage}
        return Label(key=key, role=role, method=method, pair=pair, **fields)

    def _row(
        self, label: Label, status: str, terms: tuple[str, ...], metrics: dict[str, float], reason: str = ""
    ) -> None:
        params = {f"objective.{term}.weight": "1.0" for term in terms}
        params |= {
            "train.epochs": "240",
            "train.batch_size": "64",
            "train.optimizer.name": "sgd",
            "train.optimizer.lr": "0.05",
        }
        params |= {"data.val": self.val, "data.limit": "null", "train.schedule.name": "step"}
        tags = {
            names.TAG_PROVENANCE + name: value for name, value in (("commit", "abc1234"), ("device", "cpu (8 threads)"))
        }
        if reason:
            tags[names.TAG_REASON] = reason
        self.rows.append(TrialRow(label, f"run-{label.key[-2:]}", status, metrics, params, tags))


def _sizes(params: float) -> dict[str, float]:
    return {names.PARAMS: params, names.MADDS: 150 * params, names.BYTES: 4 * params, names.LATENCY_MS: params / 1e5}


def full_sweep(val: bool = False) -> Sweep:
    """Two pairs, four methods, three seeds; `ot` of the first pair diverged once and misses one."""
    sweep = Sweep(val="5000.0" if val else "0.0")
    for _, teacher in PAIRS:
        sweep.teacher(teacher)
    for shift, pair in enumerate(PAIRS):
        for method in TERMS:
            for seed in range(3):
                _add(sweep, method, seed, pair, shift, val)
    return sweep


def _add(sweep: Sweep, method: str, seed: int, pair: tuple[str, str], shift: int, val: bool) -> None:
    if (method, shift) == ("ot", 0) and seed == 1:
        sweep.student(method, seed=seed, pair=pair, status="diverged", reason="loss is NaN in epoch 3")
    elif (method, shift) == ("ot", 0) and seed == 2:
        sweep.missing(method, seed, pair)
    else:
        top1 = TOP1[method] - shift + OFFSETS[seed] * (1 + 0.2 * len(method))
        held = {names.test("best", "top1"): top1 - 0.1, names.BEST_VAL_TOP1: top1 + 0.5} if val else {}
        sweep.student(method, top1, seed, pair, seconds=SECONDS[method] + 0.3 * seed, **held)


def histories(record: SweepRecord, accuracy: str = names.TRAIN_TOP1, epochs: int = 8) -> Callable[[str], Any]:
    """Learning curves that rise to each trial's accuracy."""

    def of(metric: str) -> dict[str, list[tuple[int, float]]]:
        if metric not in (accuracy, names.TRAIN_LOSS, names.EPOCH_S):
            return {}
        students = [row for row in record.trials if row.label.role == "student" and row.metrics]
        return {row.label.key: [(epoch, _at(row, metric, epoch)) for epoch in range(1, epochs + 1)] for row in students}

    return of


def _at(row: TrialRow, metric: str, epoch: int) -> float:
    """A metric in one epoch; the first epoch takes long, as first epochs do."""
    if metric == names.EPOCH_S:
        return row.metrics[metric] + (90 if epoch == 1 else 0)
    sign = -1 if metric == names.TRAIN_LOSS else 1
    return 4 + sign * 0.05 * row.metrics.get(names.test("last", "top1"), 60.0) * (1 - math.exp(-epoch / 3))
