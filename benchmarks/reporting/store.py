"""A sweep in MLflow's SQLite as the tracker leaves it, written by SQL: through MLflow it would take hours."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from mlflow.entities import RunTag
from numpy.typing import NDArray

from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.records import Label, SweepInfo, TrialResult
from otkd.core.trial import Data, Model, Train, Trial
from otkd.track.entities import closing_tags, settings
from otkd.track.store import TAG_BEGUN, connect

NAME = "large"
PAIRS = (
    *(("wrn_16_2", "wrn_40_2"), ("resnet8x4", "resnet32x4"), ("resnet20", "resnet56"), ("wrn_40_1", "wrn_40_2")),
    ("resnet8x4", "wrn_40_2"),
)
EPOCH_METRICS = (
    *(names.TRAIN_LOSS, names.TRAIN_TOP1, names.VAL_LOSS, names.VAL_TOP1, names.LR, names.EPOCH_S, names.OWN_S),
    *(names.TEACHER_S, names.DATA_S, names.EVAL_S, names.IMAGES_PER_S, names.PEAK_MIB),
)
BEGIN = 1_700_000_000
"""When the sweep began, in seconds since 1970."""
EPOCH_S = 10.0
LOST = 97
"""One trial in so many diverges half way."""


class Size(NamedTuple):
    pairs: int
    methods: int
    seeds: int
    epochs: int

    @property
    def trials(self) -> int:
        return self.pairs * self.methods * self.seeds


FULL, QUICK = Size(5, 50, 20, 240), Size(2, 5, 3, 12)


class Run(NamedTuple):
    """A trial and what it is to have measured."""

    id: str
    trial: Trial
    label: Label
    begin: float
    """In seconds since 1970."""
    curves: NDArray[np.float64]
    """Epoch × EPOCH_METRICS."""
    figures: dict[str, float]
    status: str


def make(layout: Layout, size: Size) -> SweepInfo:
    """Fill the database of a new `runs/` folder.

    Returns:
        The sweep that it has.
    """
    labelled = list(trials(size))
    info = SweepInfo(
        name=NAME,
        key=digest(NAME),
        question="Which of many losses is best?",
        profile="",
        yaml=f"name: {NAME}\n",
        dataset="cifar100",
        labels=tuple(label for _, label in labelled),
    )
    store = connect(layout)
    parent = begin(store, info)
    with closing(sqlite3.connect(layout.database)) as database:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000"):
            database.execute(f"PRAGMA {pragma}")
        fill(database, store.experiment, parent, info, runs(labelled, size))
    store.client.set_terminated(parent, "FINISHED")
    return info


def begin(store: Any, info: SweepInfo) -> str:
    """The sweep's own run, through MLflow."""
    tags = {
        names.TAG_KIND: "sweep",
        names.TAG_SWEEP: info.name,
        names.TAG_SWEEP_KEY: info.key,
        names.TAG_DATA: info.dataset,
    }
    parent: str = store.client.create_run(store.experiment, tags=tags, run_name=info.name).info.run_id
    store.client.log_text(parent, info.model_dump_json(indent=1), names.PLAN_ARTIFACT)
    store.client.log_batch(parent, tags=[RunTag(TAG_BEGUN, f"{time.time():.3f}")])
    return parent


def trials(size: Size) -> Iterator[tuple[Trial, Label]]:
    """Teachers, then their students pair by pair, each seed's methods together."""
    train = Train(epochs=size.epochs)
    data = Data.model_validate({"name": "cifar100", "val": 5000})
    taught = {name: Trial(data=data, student=Model(name=name), objective={"ce": {}}, train=train) for _, name in PAIRS}
    for name in dict.fromkeys(teacher for _, teacher in PAIRS[: size.pairs]):
        yield (
            taught[name],
            Label(key=taught[name].key, role="teacher", method="teacher", pair=name, student=name, teacher="", seed=0),
        )
    for (student, teacher), seed, method in product(PAIRS[: size.pairs], range(size.seeds), range(size.methods)):
        name, objective = objective_of(method)
        model, own = Model(name=student), taught[teacher]
        trial = Trial(data=data, student=model, teacher=own, objective=objective, train=train, seed=seed)
        fields = {"pair": f"{student} ← {teacher}", "student": student, "teacher": teacher, "seed": seed}
        yield trial, Label(key=trial.key, role="student", method=name, **fields)


def objective_of(method: int) -> tuple[str, dict[str, dict[str, Any]]]:
    """The student alone, KD, and transport losses that differ in weight."""
    if method == 0:
        return "student", {"ce": {}}
    if method == 1:
        return "kd", {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}}
    return f"ot_{method:02d}", {"ce": {}, "transport": {"weight": method / 2}}


def runs(labelled: list[tuple[Trial, Label]], size: Size) -> Iterator[list[Run]]:
    """Those that train side by side: teachers, then the methods of a pair and seed."""
    draw, clock = np.random.default_rng(0), float(BEGIN)
    teachers = len(labelled) - size.trials
    cuts = [0, *range(teachers, len(labelled) + 1, size.methods)]
    for first, last in pairwise(cuts):
        yield [measured(index, *labelled[index], clock, size, draw) for index in range(first, last)]
        clock += size.epochs * EPOCH_S + 60


def measured(index: int, trial: Trial, label: Label, begin: float, size: Size, draw: np.random.Generator) -> Run:
    """Invented figures: accuracies that rise to what pair, method and seed make of them."""
    lost = label.role == "student" and index % LOST == LOST - 1
    epochs = size.epochs // 2 if lost else size.epochs
    rise = 1 - np.exp(-np.arange(1, epochs + 1) / (size.epochs / 5))
    method = int(digest(label.method)[:4], 16) / 65536
    top1 = 72 + 4 * (label.role == "teacher") + method + 0.3 * draw.standard_normal()
    noise = draw.standard_normal((epochs, len(EPOCH_METRICS)))
    level = {
        names.TRAIN_LOSS: 4 - 3.5 * rise,
        names.TRAIN_TOP1: 99 * rise,
        names.VAL_LOSS: 4 - 2.8 * rise,
        names.VAL_TOP1: top1 * rise,
        names.LR: 0.05 * (1 - rise),
        names.IMAGES_PER_S: 5000 - 900 * method + 0 * rise,
        names.PEAK_MIB: 900 + np.arange(epochs) / 10,
    }
    scale = {names.IMAGES_PER_S: 20.0, names.LR: 0.0, names.PEAK_MIB: 0.0}
    curves = np.column_stack([level.get(name, EPOCH_S * (1 + method) + 0 * rise) for name in EPOCH_METRICS])
    curves += noise * [scale.get(name, 0.05) for name in EPOCH_METRICS]
    if lost:
        curves[-1, 0] = math.nan
    status = "diverged" if lost else "finished"
    return Run(digest(f"run {index}") * 2, trial, label, begin, curves, {} if lost else figures(top1, method), status)


def figures(top1: float, method: float) -> dict[str, float]:
    """What is measured once, at a trial's end."""
    sizes = {names.PARAMS: 7e5, names.MADDS: 1e8, names.BYTES: 2.8e6, names.LATENCY_MS: 3 + method}
    of_test = {"top5": 93.0, "loss": 1.1, "agreement": 80 + method, "ece": 6.0, "kl": 0.6}
    tests = {
        names.test(weights, figure): value
        for weights, less in (("last", 0.0), ("best", 0.1))
        for figure, value in ({"top1": top1 - less} | of_test).items()
    }
    return {**tests, **sizes, names.BEST_EPOCH: 200.0, names.BEST_VAL_TOP1: top1 + 0.5, names.WALL_S: 2400.0}


def fill(
    database: sqlite3.Connection, experiment: str, parent: str, info: SweepInfo, waves: Iterator[list[Run]]
) -> None:
    """All rows, in the order of time; the metrics' indexes are built at the end."""
    wanted = "type = 'index' AND tbl_name = 'metrics' AND sql IS NOT NULL"
    indexes = database.execute(f"SELECT name, sql FROM sqlite_master WHERE {wanted}").fetchall()
    for name, _ in indexes:
        database.execute(f"DROP INDEX {name}")
    place = database.execute("SELECT artifact_location FROM experiments WHERE experiment_id = ?", (experiment,))
    (root,) = place.fetchone()
    for wave in waves:
        for run in wave:
            write(database, run, [*tags(run, info, parent).items()], (int(experiment), f"{root}/{run.id}/artifacts"))
        insert(database, "metrics", metric_rows(wave))
        database.commit()
    for _, sql in indexes:
        database.execute(sql)
    database.commit()


def write(database: sqlite3.Connection, run: Run, tagged: list[tuple[str, str]], place: tuple[int, str]) -> None:
    """A run with its tags, settings and last values."""
    end = millis(run.begin + EPOCH_S * len(run.curves))
    state = "FINISHED" if run.status == "finished" else "FAILED"
    columns = "run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, experiment_id"
    head = (run.id, run.label.title, "UNKNOWN", "bench", state, millis(run.begin), end, "active", *place)
    database.execute(f"INSERT INTO runs ({columns}, artifact_uri) VALUES ({', '.join('?' * len(head))})", head)
    insert(database, "tags", [(key, value, run.id) for key, value in tagged], "key, value, run_uuid")
    params = [(key, value, run.id) for key, value in settings(run.trial).items()]
    insert(database, "params", params, "key, value, run_uuid")
    insert(database, "latest_metrics", last_rows(run, end))


def tags(run: Run, info: SweepInfo, parent: str) -> dict[str, str]:
    """As the tracker has them when a trial has ended."""
    provenance = {"commit": "0" * 40, "dirty": "false", "device": "cpu (2 threads)", "torch": "2.9.0", "host": "bench"}
    reason = "the loss is not a number" if run.status == "diverged" else ""
    begun, label = run.begin, run.label
    result = TrialResult(
        key=label.key, status=run.status, provenance=provenance, reason=reason, started=begun, ended=begun
    )
    return {
        names.TAG_KEY: label.key,
        names.TAG_KIND: label.role,
        names.TAG_SWEEP: info.name,
        names.TAG_SWEEP_KEY: info.key,
        names.TAG_DATA: info.dataset,
        names.TAG_COHORT: run.trial.cohort,
        names.TAG_PAIR: label.pair,
        names.TAG_METHOD: label.method,
        names.TAG_SEED: str(label.seed),
        names.TAG_OWNER: digest("owner"),
        "mlflow.parentRunId": parent,
        "mlflow.source.name": "otkd",
        "mlflow.runName": label.title,
    } | closing_tags(result)


def metric_rows(wave: list[Run]) -> Iterator[tuple[Any, ...]]:
    """Values of runs that train side by side, epoch by epoch; then what each has measured at its end."""
    for epoch in range(max(len(run.curves) for run in wave)):
        for run in wave:
            if epoch < len(run.curves):
                moment = millis(run.begin + EPOCH_S * (epoch + 1))
                for name, value in zip(EPOCH_METRICS, run.curves[epoch].tolist(), strict=True):
                    yield value_row(name, value, moment, run.id, epoch + 1)
    for run in wave:
        end, step = millis(run.begin + EPOCH_S * len(run.curves)), len(run.curves)
        yield from (value_row(name, value, end, run.id, step) for name, value in run.figures.items())


def last_rows(run: Run, end: int) -> list[tuple[Any, ...]]:
    """In the order of columns of `latest_metrics`."""
    last = dict(zip(EPOCH_METRICS, run.curves[-1].tolist(), strict=True)) | run.figures
    rows = (value_row(name, value, end, run.id, len(run.curves)) for name, value in last.items())
    return [(name, value, end, step, is_nan, id_) for name, value, end, id_, step, is_nan in rows]


def value_row(name: str, value: float, moment: int, run: str, step: int) -> tuple[Any, ...]:
    """In the order of columns of `metrics`; MLflow keeps a NaN as nought, and says so beside."""
    is_nan = math.isnan(value)
    return name, 0.0 if is_nan else value, moment, run, step, is_nan


def insert(database: sqlite3.Connection, table: str, rows: Any, columns: str = "") -> None:
    count = {"metrics": 6, "latest_metrics": 6}.get(table, 3)
    into = f"{table} ({columns})" if columns else table
    database.executemany(f"INSERT INTO {into} VALUES ({', '.join('?' * count)})", rows)


def millis(seconds: float) -> int:
    return int(1000 * seconds)


def digest(text: str) -> str:
    """Sixteen hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
