import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from otkd.cli import app
from otkd.core.errors import ConfigError
from otkd.core.layout import Layout, write_text
from otkd.models.factory import create
from otkd.sweep.plan import make
from otkd.sweep.schema import sweep_schema_text
from otkd.sweep.spec import load

ROOT = Path(__file__).parents[2]


def test_trials_are_pairs_times_methods_times_seeds_after_one_teacher_a_network(sweep_file):
    plan = make(load(sweep_file(pairs=[{"teacher": "resnet14", "student": s} for s in ("resnet8", "wrn_16_1")])))
    assert [planned.label.pair for planned in plan.teachers] == ["resnet14"]
    assert len(plan.students) == 2 * 2 * 2
    assert len({planned.trial.key for planned in plan.all}) == 9
    assert {planned.trial.teacher.key for planned in plan.students} == {plan.teachers[0].trial.key}
    assert plan.students[0].label.title == "resnet8 ← resnet14 · student · seed 0"


def test_a_grid_multiplies_and_labels_its_axes(sweep_file):
    transport = {"weight": {"grid": [1, 10]}, "solver": {"name": "sinkhorn", "epsilon": {"grid": [0.01, 0.05, 0.25]}}}
    plan = make(load(sweep_file(methods={"ot": {"ce": 1, "transport": transport}}, seeds=[0])))
    assert len(plan.students) == 6
    axes = [planned.label.axes for planned in plan.students]
    assert axes[0] == {"transport.weight": 1, "transport.solver.epsilon": 0.01}
    assert plan.students[1].trial.objective["transport"]["solver"]["epsilon"] == 0.05
    assert plan.students[1].label.title.endswith("ot · weight=1 · epsilon=0.05 · seed 0")


def test_spelling_out_a_default_changes_no_key(sweep_file):
    short = make(load(sweep_file(methods={"kd": {"ce": 1, "kd": 1}})))
    long = make(
        load(sweep_file(methods={"other name": {"kd": {"temperature": 4, "weight": 1.0}, "ce": {"weight": 1}}}))
    )
    assert [p.trial.key for p in short.students] == [p.trial.key for p in long.students]
    assert short.info.key != long.info.key


def test_resources_and_question_change_no_key(sweep_file):
    one = make(load(sweep_file()))
    other = make(load(sweep_file(resources={"cpu": 7, "cohort": 1}, question="Another?")))
    assert [p.trial.key for p in one.all] == [p.trial.key for p in other.all]
    assert one.info.key == other.info.key


def test_the_teacher_recipe_is_the_students_with_differences(sweep_file):
    plan = make(load(sweep_file(teacher={"train": {"epochs": 9}, "seed": 5})))
    teacher = plan.teachers[0].trial
    assert (teacher.train.epochs, teacher.train.batch_size, teacher.seed) == (9, 32, 5)
    assert teacher.data == plan.students[0].trial.data


def test_a_small_teacher_is_a_warning(sweep_file):
    plan = make(load(sweep_file(pairs=[{"teacher": "resnet8", "student": "resnet14"}])))
    assert "is smaller than the student" in plan.warnings[0]


def test_done_trials_are_not_pending(sweep_file, tmp_path):
    plan = make(load(sweep_file()))
    layout = Layout(tmp_path / "runs")
    write_text(layout.trial(plan.students[0].trial.key).result, "{}")
    assert len(plan.pending(layout)) == len(plan.all) - 1


def test_axes_that_meet_in_one_setting_share_a_trial(sweep_file):
    methods = {
        "a": {"ce": 1, "transport": {"weight": {"grid": [1, 10]}}},
        "b": {"ce": 1, "transport": {"weight": 10, "layer": {"grid": ["embedding", "logits"]}}},
    }
    plan = make(load(sweep_file(methods=methods, seeds=[0])))
    assert len(plan.students) == 4
    assert len(plan.trials) == len(plan.pending(Layout("nowhere"))) == 1 + 3


def _of_children() -> float:
    """Seconds of the processors that children which have ended took: a busy machine does not lengthen them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("extra", [[], ["--profile", "paper"]])
def test_planning_is_quick_and_imports_neither_torch_nor_ray(extra):
    code = (
        "import sys; sys.argv = ['otkd', 'plan', 'sweeps/cifar100.yaml', *sys.argv[1:]]\n"
        "from otkd.cli import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)\n"
    )
    seconds = []
    for _ in range(3):
        begin = _of_children()
        done = subprocess.run(
            [sys.executable, "-c", code, *extra], cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds.append(_of_children() - begin)
    assert done.returncode == 0, done.stderr
    assert "trials:" in done.stdout
    assert min(seconds) < 1.3  # 0.3 of it to see whether the images are here


def test_a_plan_refuses_what_the_sweep_would_refuse_of_weights_and_keeps_none(sweep_file, tmp_path):
    """Weights of a resnet8 for a resnet14, then for itself."""
    weights = tmp_path / "own.pt"
    torch.save(create("resnet8", classes=10, channels=1, seed=0).state_dict(), weights)
    for teacher, status in (("resnet14", 1), ("resnet8", 0)):
        pairs = [{"teacher": {"name": teacher, "weights": str(weights)}, "student": "resnet8"}]
        done = CliRunner().invoke(app, ["plan", str(sweep_file(pairs=pairs)), "--runs", str(tmp_path / "runs")])
        assert done.exit_code == status, done.output
        assert ("own.pt does not fit resnet14: " in str(done.exception)) == (status == 1)
    assert not (tmp_path / "runs" / "weights").exists()


@pytest.mark.parametrize(("val", "held"), [(0.001, 0), (0.999, 240)])
def test_a_share_that_holds_out_none_or_all_is_refused(sweep_file, val, held):
    text = f"data.val: of the 240 training images some are to be held out, .*; as a share, {val} is {held} of them"
    with pytest.raises(ConfigError, match=text):
        make(load(sweep_file(data={"name": "digits", "val": val, "limit": 240})))
    make(load(sweep_file(data={"name": "digits", "val": 0.003, "limit": 240})))


SPACE = {"methods.kd.kd.weight": {"loguniform": [0.1, 10]}}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"search": {"kind": "random", "space": SPACE, "samples": 2, "scheduler": "asha"}},
            "search.scheduler: asha is Ray's; leave --local out",
        ),
        ({"resources": {"gpus_per_trial": 2}}, "resources.gpus_per_trial: 2 processes need Ray; leave --local out"),
    ],
)
def test_what_needs_ray_is_refused_before_anything_is_written(sweep_file, tmp_path, parts, message):
    words = ["sweep", str(sweep_file(**parts)), "--local", "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
    assert not (tmp_path / "runs").exists()


def test_the_committed_schema_is_that_of_the_code():
    text = (ROOT / "docs" / "sweep.schema.json").read_text(encoding="utf-8")
    assert text == sweep_schema_text(), "run `make schema`"
    methods = json.loads(text)["properties"]["methods"]["additionalProperties"]["properties"]
    assert {"ce", "kd", "fitnet", "attention", "transport"} <= set(methods)
