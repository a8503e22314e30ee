import pytest

from otkd.core.errors import ConfigError, OtkdError
from otkd.sweep.plan import make
from otkd.sweep.spec import load
from otkd.sweep.trees import merge


def problems(path, *args, **options):
    with pytest.raises(ConfigError) as caught:
        make(load(path, *args, **options))
    return str(caught.value)


def test_all_structural_problems_come_together(sweep_file):
    path = sweep_file(
        train={"epochs": 0, "batchsize": 3, "optimizer": {"name": "sgd", "lr": "fast"}},
        seeds=[],
        pairs=[{"teacher": "resnet14"}],
        methodes={},
    )
    text = problems(path)
    assert text.startswith(f"{path}: ")
    for part in (
        "train.epochs: Input should be greater than 0. Got 0.",
        "train.batchsize: unknown key",
        "Did you mean 'batch_size'?",
        "lr",
        "'fast'",
        "seeds",
        "pairs.0.student: is missing.",
        "methodes: unknown key",
        "Did you mean 'methods'?",
    ):
        assert part in text, part


def test_misspelt_keys_hide_no_problem_of_meaning(sweep_file):
    path = sweep_file(
        data={"name": "digits", "limit": 10**6, "vall": 0.1},
        pairs=[{"teacher": "resnet14", "student": "resnet9", "extra": 1}],
        train={"epochs": 2, "accumulate": 2, "optimizer": {"name": "sgd", "lrr": 1}},
        teacher={"train": {"epoch": 3}},
        resources={"gpus_per_trial": 2, "cpus": 3},
    )
    text = problems(path)
    for part in (
        "data.vall: unknown key",
        "data.limit: digits has",
        "pairs.0.extra: unknown key; allowed: teacher, student.",
        "pairs.0.student: there is no model 'resnet9'",
        "train.optimizer.lrr: unknown key; allowed: name, lr, momentum, weight_decay, nesterov. Did you mean 'lr'?",
        "train.accumulate: does not work with resources.gpus_per_trial: 2",
        "teacher.train.epoch: unknown key",
        "resources.cpus: unknown key",
    ):
        assert part in text, part
    assert "pairs: " not in text, "that no pair is right is said already"


def test_a_choice_without_or_with_a_wrong_name(sweep_file):
    train = {"epochs": 1, "optimizer": {"lr": 1.0}, "schedule": {"name": "cosin"}}
    text = problems(sweep_file(train=train))
    assert "train.optimizer.name: is missing. Got {'lr': 1.0}." in text
    assert "train.schedule.name: there is no 'cosin'; there is constant, step, cosine, onecycle." in text
    assert "Did you mean 'cosine'?" in text


def test_all_problems_of_meaning_come_together(sweep_file):
    path = sweep_file(
        data={"name": "digit", "val": 0},
        pairs=[{"teacher": "wrn_40_3", "student": "resnet8"}, {"teacher": "resnet14", "student": "resnet8"}],
        methods={
            "a": {"ce": -1},
            "b": {"ce": 1, "transport": {"layer": "stage9"}},
            "c": {"ce": 1, "fitnet": {"layer": 7}},
            "d": {"kdd": 1},
            "e": {},
        },
        teacher={"train": {"epoch": 3}},
    )
    text = problems(path)
    for part in (
        "data.name: there is no data set 'digit'",
        "Did you mean 'digits'?",
        "pairs.0.teacher: there is no model 'wrn_40_3'",
        "methods.a.ce.weight: Input should be greater than or equal to 0. Got -1.",
        "methods.b.transport.layer: (resnet8 ← resnet14) there is no layer 'stage9'",
        "0 (stem), 1 (stage1)",
        "methods.c.fitnet.layer: (resnet8 ← resnet14) there is no layer 7",
        "methods.d.kdd: there is no loss 'kdd'",
        "Did you mean 'kd'?",
        "methods.e: has no terms",
        "teacher.train.epoch: unknown key",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "digits", "limit": 10**6}, "data.limit: digits has"),
        ({"name": "digits", "val": 10**6}, "data.val: a count below"),
        ({"name": "digits", "val": -0.1}, "data.val"),
    ],
)
def test_impossible_splits_are_found_before_anything_starts(sweep_file, data, message):
    assert message in problems(sweep_file(data=data))


def test_a_sweep_without_methods_is_refused(sweep_file):
    assert "methods" in problems(sweep_file(methods={}))


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: a\nseeds: [0]\nname: b\n", encoding="utf-8")
    assert "line 3, column 1: the key 'name' stands twice." in problems(path)


@pytest.mark.parametrize("text", ["name: [", "just text", "", "- a\n- b", "a: \0", "? [a, b]\n: 1"])
def test_what_is_no_sweep_gives_one_message(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert str(path) in problems(path)


def test_a_missing_file_names_the_way_out(tmp_path):
    with pytest.raises(OtkdError, match="otkd list sweeps"):
        load(tmp_path / "none.yaml")


def test_profiles_and_overrides(sweep_file, monkeypatch):
    path = sweep_file(profiles={"quick": {"train": {"epochs": 1}, "seeds": [7]}})
    monkeypatch.setattr("otkd.sweep.spec.has_gpu", lambda: False)
    assert load(path).spec.seeds == (7,)
    assert load(path).profile == "quick"
    assert load(path, "paper").spec.seeds == (0, 1)
    monkeypatch.setattr("otkd.sweep.spec.has_gpu", lambda: True)
    assert load(path).spec.seeds == (0, 1)
    spec = load(path, "quick", ["train.epochs=5", "methods.kd.kd.temperature=2.5", "data.val=0"]).spec
    assert spec.train.epochs == 5
    assert spec.methods["kd"]["kd"]["temperature"] == 2.5
    assert spec.train.batch_size == 32
    assert "Did you mean 'quick'?" in problems(path, "quik")
    assert "not of the form" in problems(path, "paper", ["train.epochs"])
    assert "Did you mean 'kd'?" in problems(path, "paper", ["methods.kdd.ce=1"])
    assert "methods: an empty mapping overrides nothing." in problems(path, "paper", ["methods={}"])


def test_a_profile_that_changes_the_name_of_a_choice_drops_the_options_of_the_other():
    base = {"train": {"schedule": {"name": "step", "gamma": 0.1}, "optimizer": {"name": "sgd", "lr": 1}}}
    merged = merge(base, {"train": {"schedule": {"name": "cosine"}, "optimizer": {"lr": 2}}})
    assert merged == {"train": {"schedule": {"name": "cosine"}, "optimizer": {"name": "sgd", "lr": 2}}}


def test_another_name_of_the_sweep_or_the_data_keeps_the_rest(sweep_file):
    spec = load(sweep_file(), overrides=["name=other", "data.name=cifar100"]).spec
    assert (spec.name, spec.data.name, spec.data.val, spec.data.limit) == ("other", "cifar100", 0.2, 200)


def test_numbers_may_be_written_as_people_write_them(tmp_path, sweep_file):
    path = sweep_file()
    text = path.read_text(encoding="utf-8").replace("epochs: 2", "epochs: 2\n  clip_norm: 1e-3")
    path.write_text(text, encoding="utf-8")
    spec = load(path, overrides=["train.optimizer.lr=5e-2", "train.optimizer.name=sgd"]).spec
    assert (spec.train.clip_norm, spec.train.optimizer.lr) == (0.001, 0.05)


def test_problems_of_structure_and_of_meaning_come_together(sweep_file):
    text = problems(sweep_file(methodes={}, methods={"a": {"ce": 1, "transport": {"epsilom": 1}}}, seeds=[0, 0]))
    for part in ("methodes: unknown key", "methods.a.transport.epsilom: unknown key", "seeds: 0 stands twice."):
        assert part in text, part


def test_a_wrong_type_hides_no_other_problem(sweep_file):
    """Of a pair whose teacher is not known, the student is asked for layers."""
    text = problems(
        sweep_file(
            data={"name": "digit", "val": 0.2, "limt": 300},
            pairs=[{"teacher": "resnet14"}, {"teacher": "resnet21", "student": "resnet8", "skp": True}],
            train={"epochs": "two", "batchsize": 32},
            methods={"at": {"ce": 1, "attention": {"wieght": 1}}, "ot": {"ce": 1, "transport": {"layer": 9}}},
            seeds=[0, 0],
        )
    )
    for part in (
        "data.limt: unknown key",
        "data.name: there is no data set 'digit'",
        "pairs.0.student: is missing",
        "pairs.1.skp: unknown key",
        "pairs.1.teacher: there is no model 'resnet21'",
        "train.epochs: Input should be a valid integer",
        "train.batchsize: unknown key",
        "methods.at.attention.wieght: unknown key",
        "methods.ot.transport.layer: (resnet8 ← resnet21) there is no layer 9",
        "seeds: 0 stands twice",
    ):
        assert part in text, f"{part}\n{text}"
    assert "10 problems" in text


@pytest.mark.parametrize("values", [[], 3, [1, 1]])
def test_an_axis_without_or_with_equal_values_is_refused(sweep_file, values):
    text = problems(sweep_file(methods={"a": {"ce": 1, "transport": {"weight": {"grid": values}}}}))
    assert "methods.a.transport.weight.grid" in text


@pytest.mark.parametrize("profiles", [{"quick": None}, {"quick": [1]}, 5])
def test_profiles_that_are_none_are_named(sweep_file, profiles):
    assert "profiles: a mapping of names" in problems(sweep_file(profiles=profiles), "quick")
