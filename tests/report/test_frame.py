"""The tidy frame: one row per trial, whatever became of it."""

from __future__ import annotations

import numpy as np
import pytest
from report_sweeps import Sweep, full_sweep, histories

from otkd.core import names
from otkd.report import frame


def test_one_row_per_label_in_the_sweeps_order(record):
    trials = frame.trials(record)
    assert list(trials["key"]) == [label.key for label in record.info.labels]
    assert frame.variants(trials) == ["student", "kd", "ot", "ot+kd"]
    assert frame.pairs(trials) == ["wrn_16_2 ← wrn_40_2", "resnet8x4 ← resnet32x4"]
    assert set(frame.METRICS) <= set(trials.columns)
    assert trials["status"].value_counts().to_dict() == {"finished": 24, "diverged": 1, "missing": 1}
    assert trials.loc[trials["status"] == "diverged", "reason"].item() == "loss is NaN in epoch 3"
    assert trials["provenance.commit"].dropna().unique().tolist() == ["abc1234"]


def test_columns_do_not_depend_on_the_order_in_which_a_store_gives_them(record):
    turned = [
        row._replace(metrics=dict(reversed(row.metrics.items())), tags=dict(reversed(row.tags.items())))
        for row in record.trials
    ]
    assert list(frame.trials(record._replace(trials=tuple(turned)))) == list(frame.trials(record))


def test_a_label_without_a_row_is_missing(record):
    cut = record._replace(trials=record.trials[:-1])
    last = frame.trials(cut).iloc[-1]
    assert (last["status"], last["key"], last["run_id"]) == ("missing", record.info.labels[-1].key, "")
    assert last["terms"] == "ce+kd+transport", "told by the method's other trials"


def test_baselines_are_told_by_their_terms_not_their_names():
    sweep = Sweep()
    sweep.student("plain", 70.0, terms=("ce",))
    sweep.student("hinton", 71.0, terms=("kd", "ce"))
    sweep.student("kd", 72.0, terms=("ce", "kd", "transport"))
    assert frame.baselines(frame.trials(sweep.record())) == ("plain", "hinton")


def test_axes_are_columns_and_name_the_variant():
    sweep = Sweep()
    for epsilon in (0.01, 0.25):
        sweep.student("ot", 70.0, axes={"transport.solver.epsilon": epsilon})
    sweep.student("both", 70.0, axes={"kd.weight": 1, "transport.weight": 2.0}, terms=("ce", "kd", "transport"))
    trials = frame.trials(sweep.record())
    assert trials["axis.transport.solver.epsilon"].tolist()[:2] == [0.01, 0.25]
    assert frame.variants(trials) == [
        "ot (epsilon=0.01)",
        "ot (epsilon=0.25)",
        "both (kd.weight=1, transport.weight=2)",
    ]


def test_seconds_are_the_median_over_epochs_not_the_first_or_last(record):
    trials = frame.trials(record, frame.epochs(record, histories(record)))
    kd = trials[(trials["method"] == "kd") & (trials["seed"] == 0)]
    np.testing.assert_allclose(kd[names.EPOCH_S], 14.0)


@pytest.mark.parametrize(("epochs", "seconds"), [([90.0], 90.0), ([90.0, 4.0], 4.0), ([90.0, 4.0, 6.0, 80.0], 6.0)])
def test_the_first_epoch_counts_only_where_there_is_no_other(epochs, seconds):
    sweep = Sweep()
    sweep.student("kd", 70.0)
    record = sweep.record()
    curve = list(enumerate(epochs, 1))[::-1]
    kept = {record.trials[0].label.key: curve}
    history = frame.epochs(record, lambda metric: kept if metric in (names.EPOCH_S, names.PEAK_MIB) else {})
    [row] = frame.trials(record, history).to_dict("records")
    assert row[names.EPOCH_S] == seconds
    assert row[names.PEAK_MIB] == 90.0


def test_each_trial_has_the_seconds_of_its_own_epochs():
    sweep = Sweep()
    spent = [[90.0, 4.0, np.nan, 6.0], [np.nan], [80.0], [8.0, np.nan, 7.0]]
    for seed in range(len(spent)):
        sweep.student("kd", 70.0, seed)
    record = sweep.record()
    kept = {row.label.key: list(enumerate(one, 1)) for row, one in zip(record.trials, spent, strict=True)}
    history = frame.epochs(record, lambda metric: kept if metric == names.EPOCH_S else {})
    mixed = frame.trials(record, history.sample(frac=1, random_state=0))[names.EPOCH_S]
    recorded = frame.trials(record)[names.EPOCH_S]
    assert mixed.tolist() == [5.0, recorded[1], 80.0, 7.0]


def test_curves_are_training_accuracy_where_nothing_was_held_out(record):
    assert set(frame.epochs(record, histories(record))["metric"]) >= {names.TRAIN_TOP1, names.TRAIN_LOSS}
    held = full_sweep(val=True).record()
    curves = frame.epochs(held, histories(held, names.VAL_TOP1))
    assert names.VAL_TOP1 in set(curves["metric"])
    assert names.TRAIN_TOP1 not in set(curves["metric"])


def test_budget_names_what_differs():
    sweep = full_sweep()
    assert "240 epochs, batch size 64, sgd lr 0.05" in frame.budget(frame.trials(sweep.record()))
    sweep.rows[-1].params["train.epochs"] = "6"
    assert "240 or 6 epochs" in frame.budget(frame.trials(sweep.record()))
    assert "nothing held out" in frame.budget(frame.trials(sweep.record()))
    assert "all training images, of which 5000 held out" in frame.budget(frame.trials(full_sweep(val=True).record()))
