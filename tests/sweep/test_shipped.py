"""Every sweep that ships expands, has the number of trials that it says, and trains."""

from pathlib import Path

import pytest
import yaml

from otkd.core.augment import Augment
from otkd.core.layout import Layout
from otkd.core.trial import Data, Model, Trial
from otkd.sweep.plan import make
from otkd.sweep.runner import Mailbox
from otkd.sweep.search import configurations, draw
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
    ("svhn", "paper"): 2 + 7 * 5 * 2,
    ("svhn", "quick"): 1 + 7 * 3,
    ("imagenet", "paper"): 2 + 6 * 3 * 2,
    ("imagenet", "quick"): 2 + 6 * 2,
    ("zoo", "paper"): 1 + 32 * 3,
    ("zoo", "quick"): 1 + 32 * 2,
    ("transport_points", "paper"): 1 + (2 + 4 * 3 + 2) * 3,
    ("transport_points", "quick"): 1 + (2 + 4 * 3 + 2),
    ("transport_entropy", "paper"): 1 + (2 + 3 * 3 * 3) * 3,
    ("transport_entropy", "quick"): 1 + (2 + 3 * 3 * 3),
    ("tune_transport", "paper"): 1 + (1 + 2 * 30),
    ("tune_transport", "quick"): 1 + (1 + 2 * 12),
}


def profiles(path):
    return ["paper", *(yaml.safe_load(path.read_text(encoding="utf-8")).get("profiles") or {})]


CASES = [(path, profile) for path in FILES for profile in profiles(path)]


@pytest.mark.parametrize(("path", "profile"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_expands_to_its_number_of_trials(path, profile):
    plan = make(load(path, profile))
    searched = sum(configurations(plan.spec.search, study) for study in plan.studies) * len(plan.spec.seeds)
    assert len(plan.trials) + searched == TRIALS[path.stem, profile]
    assert plan.info.question.endswith("?")
    assert plan.warnings == ()


PUBLISHED = {
    "kd": {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}},
    "fitnets": {"ce": 1, "fitnet": {"weight": 100, "layer": 2, "relu": True}},
    "at": {"ce": 1, "attention": {"weight": 1000, "p": 2}},
    "sp": {"ce": 1, "similarity": {"weight": 3000}},
    "cc": {"ce": 1, "correlation": {"weight": 0.02, "width": 128}},
    "vid": {"ce": 1, "vid": {"weight": 1, "initial_variance": 5}},
    "rkd": {"ce": 1, "rkd": {"weight": 1, "distance_weight": 25, "angle_weight": 50}},
    "pkt": {"ce": 1, "pkt": {"weight": 30000}},
    "ab": {"ce": 1, "ab": {"margin": 1, "stages": {"epochs": 30, "lr": 0.05}}},
    "ft": {"ce": 1, "factor": {"weight": 200, "rate": 0.5, "stages": {"epochs": 30, "lr": 0.01}}},
    "fsp": {"ce": 1, "fsp": {"stages": {"epochs": 30, "lr": 0.05}}},
    "nst": {"ce": 1, "nst": {"weight": 50}},
    "kdsvd": {"ce": 1, "kdsvd": {"weight": 1, "k": 1}},
    "crd": {"ce": 1, "crd": {"weight": 0.8, "negatives": 16384, "temperature": 0.07, "momentum": 0.5, "width": 128}},
    "crd+kd": {"ce": 1, "kd": {"weight": 1, "temperature": 4}, "crd": {"weight": 0.8}},
    "ofd": {"ce": 1, "ofd": {"weight": 1e-3}},
    "reviewkd": {"ce": 1, "reviewkd": {"weight": 1, "schedule": {"name": "warmup", "epochs": 20}}},
    "dkd": {"ce": 1, "dkd": {"weight": 1, "alpha": 1, "beta": 8, "temperature": 4}},
    "simkd": {"simkd": {"weight": 1, "factor": 2}},
    "srrl": {"ce": 1, "kd": {"weight": 1, "temperature": 4}, "srrl": {"weight": 1}},
    "semckd": {"ce": 1, "kd": {"weight": 1, "temperature": 4}, "semckd": {"weight": 400}},
    "dist": {"ce": 1, "dist": {"weight": 2, "beta": 1, "gamma": 1, "temperature": 1}},
    "wsl": {"ce": 1, "wsl": {"weight": 2.5, "temperature": 2}},
    "wkd-l": {"ce": 1, "wkd_logit": {"transport": 600, "temperature": 8}},
    "wkd-f": {"ce": 1, "wkd_feature": {"weight": 0.08, "mean_weight": 4, "grid": 1}},
}
"""Objectives and settings as published, defaults included."""
BY_PAIR = {
    ("dkd", "wrn_40_2", "wrn_16_2"): ("dkd", "beta", 6),
    ("dkd", "vgg13", "MobileNetV2"): ("dkd", "beta", 6),
    ("dkd", "resnet56", "resnet20"): ("dkd", "beta", 2),
    ("dkd", "resnet32x4", "resnet8x4"): ("dkd", "beta", 8),
    ("reviewkd", "resnet32x4", "resnet8x4"): ("reviewkd", "weight", 5),
    ("wkd-l", "wrn_40_2", "ShuffleV1"): ("wkd_logit", "transport", 200),
    ("wkd-f", "wrn_40_2", "ShuffleV1"): ("wkd_feature", "mean_weight", 3),
}


def planned(tmp_path, teacher, student, *methods):
    """Method → objective, with every default filled in."""
    path = tmp_path / "one.yaml"
    sweep = {
        "name": "one",
        "data": {"name": "cifar100"},
        "pairs": [{"teacher": teacher, "student": student}],
        "train": {"epochs": 240},
        "methods": {"from": str(ROOT / "sweeps/methods.yaml"), "only": list(methods)},
    }
    path.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return {item.label.method: item.trial.objective for item in make(load(path)).students}


def test_methods_are_as_published(tmp_path):
    for method, objective in planned(tmp_path, "resnet110", "resnet20", *PUBLISHED).items():
        assert set(objective) == set(PUBLISHED[method])
        for term, options in PUBLISHED[method].items():
            settings = options if isinstance(options, dict) else {"weight": options}
            assert {name: objective[term][name] for name in settings} == settings, method


def test_methods_are_as_published_for_a_pair(tmp_path):
    for (method, teacher, student), (term, setting, value) in BY_PAIR.items():
        assert planned(tmp_path, teacher, student, method)[method][term][setting] == value


def last(plan):
    """The last student, or the first draw of the last study."""
    if plan.students:
        return plan.students[-1].trial
    return plan.candidate(plan.studies[-1], 0, draw(plan.studies[-1], 0, seed=0)).planned[0].trial


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_trial_of_it_trains_for_two_steps(path, tmp_path):
    """On patterns in place of its own data set, so that it needs no download.

    Their images are not smaller: with one pixel left, oneDNN's gradient of a strided convolution in bf16 (with AMX)
    reads memory that nobody wrote, and is now and then not finite.
    """
    plan = make(load(path, profiles(path)[-1]))
    data = Data(name="synthetic", limit=20, options={"side": 32}, augment=Augment(pad=1))
    train = plan.spec.train.model_copy(update={"epochs": 1, "batch_size": 10})
    environment = Environment(layout=Layout(tmp_path), device="cpu", threads=1)
    network = Model(name=plan.teachers[0].trial.student.name)
    teacher = Trial(data=data, student=network, objective={"ce": {}}, train=train)
    student = last(plan).model_copy(update={"data": data, "train": train, "teacher": teacher})
    for trial in (teacher, student):
        [result] = fit([trial], Mailbox(), environment)
        assert result.status == "finished", result.reason
        assert result.epochs[0].metrics["train/loss"] > 0
