"""Names of metrics and tags: written by the engine and the tracker, read by the report.

Per epoch: `train/…` averages over the epoch's batches, `val/…` is measured on held-out images after it.
Per trial: `test/last/…` with the last weights, `test/best/…` with the weights that were best on validation.
"""

from __future__ import annotations

# per epoch
TRAIN_LOSS, TRAIN_TOP1, TRAIN_TOP5 = "train/loss", "train/top1", "train/top5"
TRAIN_AGREEMENT = "train/agreement"
"""Top-1 agreement with the teacher on the training batches, for those whose objective asks the teacher."""
VAL_LOSS, VAL_TOP1, VAL_TOP5, VAL_AGREEMENT = "val/loss", "val/top1", "val/top5", "val/agreement"
LR = "lr"
EPOCH_S = "time/epoch_s"
"""Training seconds of one epoch as if the trial had trained alone: its own steps and the whole of what it shares."""
OWN_S, TEACHER_S, DATA_S, EVAL_S = "time/own_s", "time/teacher_s", "time/data_s", "time/eval_s"
IMAGES_PER_S = "time/images_per_s"
PEAK_MIB = "memory/peak_mib"
"""Peak memory in MiB: of the worker process so far (CPU), of the device's allocator for the cohort (CUDA)."""
EPOCH_J = "energy/epoch_j"
"""Joules of the device in `EPOCH_S`, at its mean power while the cohort trained; absent where it does not tell."""

SYSTEM = "system/"
"""Prefix of what the machine is doing meanwhile (`otkd.train.system`); MLflow shows it on a page of its own."""


def term(name: str, part: str) -> str:
    """A term's metric: part is `raw` (the value), `weighted`, or a diagnostic of the term's own."""
    return f"train/{name}/{part}"


# per trial
TEST_TOP1, TEST_TOP5, TEST_LOSS, TEST_AGREEMENT = "top1", "top5", "loss", "agreement"
TEST_ECE, TEST_KL = "ece", "kl"
"""Expected calibration error in percent; KL divergence of a student's probabilities from its teacher's in nats."""
TEST_FIGURES = (TEST_TOP1, TEST_TOP5, TEST_LOSS, TEST_AGREEMENT, TEST_ECE, TEST_KL)


def test(weights: str, figure: str) -> str:
    """`test("last", "top1")`: a figure on the test set, with the `last` weights or those `best` on validation."""
    return f"test/{weights}/{figure}"


TEST = "test/"
"""Prefix of all figures on the test set."""
SEARCHED = "search/"
"""Prefix of the test figures of a search's candidates in MLflow, apart from those that are compared."""
BEST_EPOCH, BEST_VAL_TOP1 = "val/best/epoch", "val/best/top1"
PARAMS, MADDS, BYTES, LATENCY_MS = "model/params", "model/madds", "model/bytes", "model/latency_ms"
WALL_S = "time/wall_s"
PREPARE_S = "time/prepare_s"
"""Seconds of what the terms learn from the teacher before the first epoch, the teacher's pass included. In `WALL_S`."""
TRIAL_J = "energy/trial_j"
"""Joules of the device in all epochs; absent where it did not tell them of each."""
TEACHER = "teacher/"
"""Prefix of the teacher's figures in a student's record, e.g. `teacher/test/last/top1`, `teacher/model/params`."""

# MLflow tags
TAG_KIND = "otkd.kind"
"""`sweep` for a parent run, `teacher` or `student` for a trial."""
TAG_KEY, TAG_COHORT, TAG_STATUS, TAG_REASON = "otkd.key", "otkd.cohort", "otkd.status", "otkd.reason"
TAG_SUPERSEDED = "otkd.superseded"
"""Key of a trial that diverged in this run and has another since: that one has `otkd.key`, which is empty here."""
TAG_OWNER = "otkd.owner"
"""From which `runs/` a trial is trained; only that one goes on with it while it is in training."""
TAG_FILES = "otkd.files"
"""`missing`: the figures are there, and the files could not be written."""
TAG_SWEEP, TAG_SWEEP_KEY, TAG_PROFILE = "otkd.sweep", "otkd.sweep_key", "otkd.profile"
TAG_PAIR, TAG_METHOD, TAG_SEED, TAG_DATA = "otkd.pair", "otkd.method", "otkd.seed", "otkd.data"
DATA_CONTEXT = "mlflow.data.context"
"""Of a dataset input: what the run took it for, `training`, `validation` or `test`."""
TAG_PROVENANCE = "otkd.provenance."
"""Prefix: `otkd.provenance.commit`, `.dirty`, `.device`, `.host`, `.torch`, …"""

# artifacts of a sweep's parent run
PLAN_ARTIFACT, YAML_ARTIFACT, REPORT_ARTIFACT = "plan.json", "sweep.yaml", "report"
