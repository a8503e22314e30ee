"""Every sweep that ships expands, has the number of trials that it says, and trains."""

from pathlib import Path

import pytest
import yaml

from otkd.core.layout import Layout
from otkd.core.trial import Augment, Data
from otkd.sweep.plan import make
from otkd.sweep.runner import Mailbox
from otkd.sweep.spec import load
from otkd.train import Environment, fit

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "sweeps").rglob("*.yaml") if path.name != "methods.yaml")
TRIALS = {
    ("demo", "paper"): 1 + 6 * 3,
    ("cifar100", "paper"): 2 + 7 * 5 * 2,
    ("cifar100", "quick"): 1 + 7 * 3,
    ("cifar100_transport", "paper"): 1 + (2 + 3 + 2 + 2 + 4) * 3,
    ("cifar100_transport", "quick"): 1 + (2 + 3 + 2 + 2 + 4),  # four axes meet in one default setting
    ("ot_solvers", "paper"): 1 + 15 * 3,
    ("ot_solvers", "quick"): 1 + 15 * 3,
    ("ot_losses", "paper"): 1 + 14 * 3,
    ("ot_losses", "quick"): 1 + 14 * 3,
    ("zoo", "paper"): 1 + 32 * 3,
    ("zoo", "quick"): 1 + 32 * 2,
    ("transport_points", "paper"): 1 + (2 + 4 * 3 + 2) * 3,
    ("transport_points", "quick"): 1 + (2 + 4 * 3 + 2),
    ("transport_entropy", "paper"): 1 + (2 + 3 * 3 * 3) * 3,
    ("transport_entropy", "quick"): 1 + (2 + 3 * 3 * 3),
}


def profiles(path):
    return ["paper", *(yaml.safe_load(path.read_text(encoding="utf-8")).get("profiles") or {})]


CASES = [(path, profile) for path in FILES for profile in profiles(path)]


@pytest.mark.parametrize(("path", "profile"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_expands_to_its_number_of_trials(path, profile):
    plan = make(load(path, profile))
    assert len(plan.trials) == TRIALS[path.stem, profile]
    assert plan.info.question.endswith("?")
    assert plan.warnings == ()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_trial_of_it_trains_for_two_steps(path, tmp_path):
    """On digits in place of its own data set, so that it needs no download."""
    plan = make(load(path, profiles(path)[-1]))
    data = Data(name="digits", limit=20, augment=Augment(pad=1))
    train = plan.spec.train.model_copy(update={"epochs": 1, "batch_size": 10})
    environment = Environment(layout=Layout(tmp_path), device="cpu", threads=1)
    teacher = plan.teachers[0].trial.model_copy(update={"data": data, "train": train})
    student = plan.students[-1].trial.model_copy(update={"data": data, "train": train, "teacher": teacher})
    for trial in (teacher, student):
        [result] = fit([trial], Mailbox(), environment)
        assert result.status == "finished", result.reason
        assert result.epochs[0].metrics["train/loss"] > 0
