"""A short CIFAR-100 sweep, its trials one by one and as cohorts: the same figures, in how many seconds each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.training.scene import Place
from benchmarks.training.speed import shown
from benchmarks.transport.tables import Table
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Trial

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ROOT / "sweeps" / "cifar100.yaml"
SHORTER = ("data.limit=2000", "train.epochs=2", "teacher.train.epochs=2", "seeds=[0]")
COHORTS = ("1", "auto")
MEASURED = ("test/", "val/", "train/")
"""Prefixes of the figures that have to agree; the others are times and sizes."""

Figures = dict[str, dict[str, float]]


def compared(place: Place) -> Table:
    """Both ways.

    Raises:
        RuntimeError: a figure differs, or a trial is missing.
    """
    records: list[dict[str, Any]] = []
    found = []
    for cohort in COHORTS:
        folder = place.root / f"sweep-{cohort}"
        whole_s = run(place, folder, cohort)
        results = students(Layout(folder))
        found.append({result.key: figures(result) for result in results})
        students_s = max(result.ended for result in results) - min(result.started for result in results)
        records.append({"cohort": cohort, "trials": str(len(results)), "students s": students_s, "whole s": whole_s})
    complain(*found)
    for record in records:
        record["classic / this"] = records[0]["students s"] / record["students s"]
    return shown("a short sweep of CIFAR-100, the same figures bit for bit", records)


def run(place: Place, folder: Path, cohort: str) -> float:
    """Seconds of a sweep from an empty folder, its teacher's training included."""
    settings = [*SHORTER, f"resources.cohort={cohort}"]
    options = ["--profile", "quick", "--runs", str(folder), "--data-dir", str(place.data_dir)]
    options += ["--device", str(place.device), *(part for text in settings for part in ("--set", text))]
    command = [sys.executable, "-c", "from otkd.cli import main; main()", "sweep", str(SWEEP), *options]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"the sweep with cohorts of {cohort} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def students(layout: Layout) -> list[TrialResult]:
    """Results of all trials that have a teacher."""
    found = []
    for file in sorted(layout.trials.glob("*/result.json")):
        trial = Trial.model_validate_json((file.parent / "trial.json").read_text(encoding="utf-8"))
        if trial.teacher is not None:
            found.append(TrialResult.model_validate_json(file.read_text(encoding="utf-8")))
    return found


def figures(result: TrialResult) -> dict[str, float]:
    """Everything of a result that training decides."""
    named: dict[str, Any] = dict(result.metrics)
    for record in result.epochs:
        named |= {f"{name} @ {record.stage} {record.epoch}": value for name, value in record.metrics.items()}
    return {name: value for name, value in named.items() if name.startswith(MEASURED)}


def complain(one: Figures, other: Figures) -> None:
    """Raise RuntimeError unless both hold the same trials with the same figures."""
    if one.keys() != other.keys() or not one:
        raise RuntimeError(f"not the same trials: {sorted(one)} and {sorted(other)}")
    for key, figures in one.items():
        unequal = [name for name in figures | other[key] if figures.get(name) != other[key].get(name)]
        if unequal:
            both = json.dumps([[name, figures.get(name), other[key].get(name)] for name in unequal[:5]])
            raise RuntimeError(f"trial {key} differs between one by one and cohorts: {both}")
