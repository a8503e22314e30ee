"""Methods from a shared file and methods that differ from pair to pair."""

import pytest
import torch
import yaml
from rich.console import Console

from otkd.core.errors import ConfigError
from otkd.core.layout import Layout
from otkd.models.factory import create
from otkd.sweep.plan import make
from otkd.sweep.show import show_plan
from otkd.sweep.spec import load

SHARED = {
    "methods": {
        "kd": {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}},
        "at": {"ce": 1, "attention": {"weight": 1000}},
        "hint": {
            "ce": 1,
            "fitnet": {"weight": 100},
            "pairs": [{"teacher": "resnet20", "student": "resnet8", "fitnet": {"weight": 7}}],
        },
    }
}
TWO = [{"teacher": "resnet14", "student": "resnet8"}, {"teacher": "resnet20", "student": "resnet8"}]


@pytest.fixture
def planned(sweep_file, tmp_path):
    """Plan a sweep beside the shared file."""

    def plan(methods, overrides=(), **parts):
        (tmp_path / "methods.yaml").write_text(yaml.safe_dump(SHARED, sort_keys=False))
        return make(load(sweep_file(methods=methods, **parts), overrides=overrides))

    return plan


def objectives(plan):
    return {
        (planned.label.method, planned.label.teacher): planned.trial.objective
        for planned in plan.students
        if planned.label.seed == 0
    }


def test_all_some_and_changed_methods_of_a_file(planned):
    assert [m for m, _ in objectives(planned({"from": "methods.yaml"}))] == ["kd", "at", "hint"]
    plan = planned(
        {"from": "methods.yaml", "only": ["at", "kd"], "kd": {"kd": {"temperature": 2}}, "student": {"ce": 1}}
    )
    found = objectives(plan)
    assert [m for m, _ in found] == ["at", "kd", "student"]
    assert found["kd", "resnet14"]["kd"] == {"weight": 0.9, "schedule": None, "temperature": 2.0, "scaled": True} | {
        key: value for key, value in found["kd", "resnet14"]["kd"].items() if key == "standardize"
    }
    assert "temperature: 2" in plan.info.yaml
    assert "from:" not in plan.info.yaml


def test_it_can_be_overridden(planned):
    assert [m for m, _ in objectives(planned({"from": "methods.yaml"}, ["methods.only=[at]"]))] == ["at"]
    found = objectives(planned({"from": "methods.yaml"}, ["methods.kd.kd.temperature=3"]))
    assert found["kd", "resnet14"]["kd"]["temperature"] == 3
    with pytest.raises(ConfigError, match=r"there is no method 'kt'; there is kd, at, hint. Did you mean 'kd'"):
        planned({"from": "methods.yaml"}, ["methods.kt.kd.temperature=3"])


def test_a_profile_says_nothing_of_methods_that_are_not_chosen(sweep_file, tmp_path):
    (tmp_path / "methods.yaml").write_text(yaml.safe_dump(SHARED, sort_keys=False))
    quick = {"methods": {"at": {"attention": {"weight": 3}}, "kd": {"kd": {"temperature": 2}}}}
    path = sweep_file(methods={"from": "methods.yaml", "only": ["kd"]}, profiles={"quick": quick})
    found = objectives(make(load(path, "quick")))
    assert [m for m, _ in found] == ["kd"]
    assert found["kd", "resnet14"]["kd"]["temperature"] == 2
    assert found["kd", "resnet14"]["kd"]["weight"] == 0.9


def test_short_weights_may_be_laid_over_and_under(planned):
    kd = {"ce": 0.1, "kd": 0.9, "pairs": [{"teacher": "resnet20", "student": "resnet8", "kd": {"temperature": 6}}]}
    hint = {"fitnet": 5}
    found = objectives(planned({"from": "methods.yaml", "mine": kd, "hint": hint}, pairs=TWO))
    assert found["mine", "resnet20"]["kd"]["weight"] == 0.9
    assert found["mine", "resnet20"]["kd"]["temperature"] == 6
    assert found["hint", "resnet14"]["fitnet"]["weight"] == 5
    assert found["hint", "resnet20"]["fitnet"]["weight"] == 7


def test_problems_of_the_shared_file_and_of_the_sweep_come_together(planned):
    with pytest.raises(ConfigError) as caught:
        planned({"from": "nowhere.yaml"}, pairs=[{"teacher": "resnet41", "student": "resnet8"}], seeds=[])
    for part in ("methods.from: there is no file", "there is no model 'resnet41'", "seeds"):
        assert part in str(caught.value)


def test_a_method_without_a_term_in_the_main_stage_is_refused(planned):
    with pytest.raises(ConfigError, match=r"methods\.a: no term takes part in the main stage; add one"):
        planned({"a": {"fsp": {}}, "b": {"ce": 1, "ab": {}}})


def test_a_method_may_be_left_out_for_a_pair(planned):
    skipped = {"teacher": "vgg13", "student": "resnet8", "skip": True}
    methods = {"at": {"ce": 1, "attention": 1000, "pairs": [skipped]}, "kd": {"kd": 1}}
    pairs = [{"teacher": "vgg13", "student": "resnet8"}, TWO[0]]
    assert set(objectives(planned(methods, pairs=pairs))) == {("kd", "vgg13"), ("at", "resnet14"), ("kd", "resnet14")}
    with pytest.raises(ConfigError, match="`skip: true` under the method's `pairs:`"):
        planned({"at": {"ce": 1, "attention": 1000}}, pairs=pairs)


def test_stages_are_in_the_budget(planned, capsys):
    plan = planned({"fsp": {"ce": 1, "fsp": {"stages": {"epochs": 7}}}, "kd": {"kd": 1}})
    assert any(note.endswith("left out of seconds per epoch: fsp 7.") for note in plan.info.notes)
    show_plan(plan, Layout("nowhere"), Console(width=200))
    assert f"{2 + 2 * (2 + 7) + 2 * 2} epochs in all" in capsys.readouterr().out


def test_a_method_may_differ_from_pair_to_pair(planned):
    found = objectives(planned({"from": "methods.yaml"}, pairs=TWO))
    assert found["hint", "resnet14"]["fitnet"]["weight"] == 100
    assert found["hint", "resnet20"]["fitnet"]["weight"] == 7
    assert found["kd", "resnet14"] == found["kd", "resnet20"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"from": "nowhere.yaml"}, r"methods\.from: there is no file .*nowhere\.yaml"),
        ({"from": 3}, r"methods\.from: the name of a YAML file, relative to this one\. Got 3\."),
        ({"from": "tiny.yaml"}, r"methods\.from: tiny\.yaml takes its methods from a file, too; name that one"),
        (
            {"from": "methods.yaml", "only": ["kb"]},
            r"there is no method 'kb'; there is kd, at, hint\. Did you mean 'kd'",
        ),
        ({"from": "methods.yaml", "only": []}, r"methods\.only: a list of one method or more\. Got \[\]"),
        ({"a": {"ce": 1, "pairs": {"x": 1}}}, r"methods\.a\.pairs: a list of"),
        (
            {"a": {"ce": 1, "pairs": [{"teacher": "resnet41", "student": "resnet8"}]}},
            r"methods\.a\.pairs\.0\.teacher: a model\. Got 'resnet41'\. Did you mean 'resnet44'",
        ),
        (
            {"a": {"ce": 1, "pairs": [{"teacher": "vgg13", "student": "vgg8", "kd": {"temperatur": 1}}]}},
            r"methods\.a\.kd\.temperatur: unknown key",
        ),
    ],
)
def test_what_is_wrong_is_said(planned, methods, message):
    with pytest.raises(ConfigError, match=message):
        planned(methods)


def test_networks_with_weights_are_planned_by_content(sweep_file, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(create("resnet14", classes=10, channels=1, seed=3).state_dict(), path)
    teachers = [{"name": "resnet14", "weights": str(path)}, "resnet14"]
    plan = make(load(sweep_file(pairs=[{"teacher": teacher, "student": "resnet8"} for teacher in teachers])))
    measured, trained = plan.teachers
    assert (measured.label.pair, trained.label.pair) == ("resnet14 (mine)", "resnet14")
    assert measured.trial.student.weights.startswith("sha256:")
    assert (measured.trial.train.epochs, measured.trial.objective) == (0, {})
    assert {planned.label.pair for planned in plan.students} == {"resnet8 ← resnet14 (mine)", "resnet8 ← resnet14"}
    assert [given.source for given in plan.weights] == [str(path)]
    assert any("is not trained here: it has the weights mine.pth (sha256:" in note for note in plan.info.notes)
    moved = path.rename(tmp_path / "other.pth")
    again = make(
        load(sweep_file(pairs=[{"teacher": {"name": "resnet14", "weights": str(moved)}, "student": "resnet8"}]))
    )
    assert again.teachers[0].trial.key == measured.trial.key


@pytest.mark.parametrize(("name", "takes"), [("vit_b_16", "224 pixels and no other"), ("vgg16", "32 pixels and more")])
def test_networks_for_other_images_are_refused(sweep_file, name, takes):
    with pytest.raises(
        ConfigError, match=rf"pairs\.0\.teacher: torchvision/{name} takes images of {takes}; .* has 8\."
    ):
        make(load(sweep_file(pairs=[{"teacher": f"torchvision/{name}", "student": "resnet8"}])))


def test_teachers_for_other_classes_are_refused(sweep_file):
    network = {"name": "torchvision/resnet18", "weights": "IMAGENET1K_V1"}
    assert make(load(sweep_file(pairs=[{"teacher": "resnet14", "student": network}]))).weights[0].begins
    with pytest.raises(ConfigError, match=r"teacher\.weights: IMAGENET1K_V1 tells the 1000 classes of ImageNet apart"):
        make(load(sweep_file(pairs=[{"teacher": network, "student": "resnet8"}])))
    with pytest.raises(ConfigError, match=r"there is no file IMAGENET1K_V9 here.*it comes with IMAGENET1K_V1"):
        make(load(sweep_file(pairs=[{"teacher": {**network, "weights": "IMAGENET1K_V9"}, "student": "resnet8"}])))


def test_files_of_one_name_are_told_apart(sweep_file, tmp_path):
    paths = [tmp_path / place / "ckpt.pth" for place in "ab"]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        torch.save(create("resnet14", classes=10, channels=1, seed=seed).state_dict(), path)
    pairs = [{"teacher": {"name": "resnet14", "weights": str(path)}, "student": "resnet8"} for path in paths]
    plan = make(load(sweep_file(pairs=pairs)))
    titles = {planned.label.pair for planned in plan.teachers}
    assert len(titles) == 2
    assert all(title.startswith("resnet14 (ckpt, ") for title in titles)


def test_weights_that_are_nowhere_are_refused(sweep_file):
    pair = {"teacher": {"name": "resnet14", "weights": "gone.pth"}, "student": "resnet8"}
    with pytest.raises(
        ConfigError, match=r"pairs\.0\.teacher\.weights: there is no file gone\.pth here, and resnet14 has"
    ):
        make(load(sweep_file(pairs=[pair])))
