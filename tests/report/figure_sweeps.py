"""Sweeps with settings that vary, names that are hostile, and the files that trials keep."""

from __future__ import annotations

import json
from collections.abc import Iterable

from report_sweeps import PAIRS, Sweep

from otkd.core import names

HOSTILE = r"<script>alert(1)</script> _%&$#^~\ → ⇒ Ł é 漢 [x] *"
"""Everything that HTML, LaTeX or Markdown would read as markup, and letters that pdflatex does not know."""

SETTING, OTHER = "transport.solver.epsilon", "transport.cost"
EPSILONS = (0.01, 0.05, 0.25)
COSTS = ("sqeuclidean", "cosine")


class Files:
    """Files of trials' runs, as a report reads them."""

    def __init__(self, texts: dict[tuple[str, str], str]) -> None:
        self.texts = texts
        self.asked: list[tuple[str, str]] = []

    def text(self, key: str, path: str) -> str | None:
        self.asked.append((key, path))
        return self.texts.get((key, path))


def ablations(val: bool = False, seeds: Iterable[int] = (0, 1, 2)) -> Sweep:
    """`one` varies epsilon alone, `two` varies epsilon and cost; one trial of each diverged."""
    sweep = Sweep(val="5000.0" if val else "0.0")
    sweep.teacher(PAIRS[0][1])
    for seed in seeds:
        sweep.student("student", 70.0 + 0.2 * seed, seed, **_held(70.0, val))
        sweep.student("kd", 71.0 + 0.1 * seed, seed, **_held(71.0, val))
        for place, epsilon in enumerate(EPSILONS):
            top1 = 72.0 + place - 0.4 * place**2 + 0.3 * seed * (1 + place)
            _varied(sweep, "one", top1, seed, {SETTING: epsilon}, val, lost=(place, seed) == (2, 1))
            for shift, cost in enumerate(COSTS):
                top1 = 70.0 + 0.5 * place + 2 * shift + 0.1 * seed
                _varied(sweep, "two", top1, seed, {SETTING: epsilon, OTHER: cost}, val, lost=(place, shift) == (0, 1))
    return sweep


def hostile() -> Sweep:
    """Pairs, methods, settings and reasons that are one hostile string."""
    sweep = ablations()
    pair = (HOSTILE, "[t_b]")
    for seed in range(3):
        sweep.student("student", 70.0 + 0.2 * seed, seed, pair)
        for value in (HOSTILE, "*", "[b]"):
            axes = {"transport.batch_weight": value}
            top1 = 71.0 + 0.1 * seed + 0.3 * len(value)
            sweep.student(HOSTILE, top1, seed, pair, terms=("ce", "transport"), axes=axes)
    sweep.student(HOSTILE, status="failed", reason=HOSTILE, seed=3, pair=pair, terms=("ce", "transport"), axes=axes)
    return sweep


def counts(*rows: tuple[int, ...]) -> str:
    """`confusion.json` of a matrix."""
    cells = [[label, taken, n] for label, row in enumerate(rows) for taken, n in enumerate(row) if n]
    return json.dumps({"classes": len(rows), "cells": cells})


def plan(matrix: list[list[float]], classes: list[int] | None) -> str:
    """`snapshots.json` of one plan."""
    picture = {"about": "plan between images, ordered by class", "matrix": matrix, "classes": classes}
    return json.dumps({"pictures": {"transport-embedding": picture}})


def _held(top1: float, val: bool) -> dict[str, float]:
    return {names.BEST_VAL_TOP1: top1 + 1.0, names.test("best", "top1"): top1} if val else {}


def _varied(sweep: Sweep, method: str, top1: float, seed: int, axes: dict[str, object], val: bool, lost: bool) -> None:
    terms = ("ce", "transport")
    if lost:
        sweep.student(method, seed=seed, status="diverged", reason="loss is NaN", terms=terms, axes=axes)
    else:
        sweep.student(method, top1, seed, terms=terms, axes=axes, seconds=20.0, **_held(top1, val))
