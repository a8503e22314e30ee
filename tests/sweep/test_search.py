"""Searches: what a file may ask for, what is drawn, and the trials that come of it."""

import math
import re

import pytest
from pydantic import ValidationError

from otkd.core.errors import ConfigError
from otkd.core.trial import digest
from otkd.sweep.plan import make
from otkd.sweep.search import Dimension, Search, Study, configurations, draw, point
from otkd.sweep.spec import load

METHODS = {
    "student": {"ce": 1},
    "kd": {"ce": 1, "kd": 1},
    "ot": {"ce": 1, "transport": {"weight": 10, "solver": "sinkhorn"}},
}
SPACE = {
    "methods.ot.transport.weight": {"loguniform": [0.1, 100]},
    "methods.ot.transport.solver.epsilon": {"loguniform": [0.005, 0.5]},
    "methods.ot.transport.layer": {"choice": ["embedding", 3]},
    "methods.kd.kd.temperature": {"uniform": [1, 8]},
}
RANDOM = {"kind": "random", "space": SPACE, "samples": 4}


@pytest.fixture
def planned(sweep_file):
    """Plan a sweep with `search:` and some other parts replaced."""

    def plan(search, **parts):
        return make(load(sweep_file(**{"methods": METHODS, "search": search, **parts})))

    return plan


@pytest.fixture
def problems(planned):
    """The message about a search that cannot be planned."""

    def text(search, **parts):
        with pytest.raises(ConfigError) as caught:
            planned(search, **parts)
        return str(caught.value)

    return text


def interval(**range_):
    return Search.model_validate({"space": {"x": range_}}).space["x"]


def test_an_interval_is_covered_evenly_from_end_to_end():
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [interval(uniform=[-1, 3]).at(share) for share in shares] == [-1, 0, 1, 2, 3]
    assert [interval(loguniform=[0.01, 100]).at(share) for share in shares] == [0.01, 0.1, 1, 10, 100]
    assert [interval(int=[1, 4]).at((i + 0.5) / 400) for i in range(400)] == [1 + i // 100 for i in range(400)]
    assert {interval(choice=["a", "b", None]).at(i / 30) for i in range(31)} == {"a", "b", None}
    logint = interval(logint=[1, 64])
    assert (logint.at(0.0), logint.at(0.5), logint.at(1.0)) == (1, round(math.sqrt(0.5 * 64.5)), 64)
    assert all(type(value) is int for value in map(logint.at, shares))


def test_drawn_numbers_have_no_more_digits_than_matter():
    assert interval(loguniform=[1e-5, 1]).at(1 / 3) == 0.0004642
    narrow = interval(uniform=[0.9990, 0.9999])
    assert len({narrow.at(i / 100) for i in range(101)}) == 101
    assert narrow.at(0.5) == 0.99945


def test_draws_depend_on_nothing_but_seed_study_number_and_path():
    dimensions = tuple(Dimension(*item) for item in Search.model_validate(RANDOM).space.items())
    study = Study("a ← b", "ot", dimensions)
    first = draw(study, 3, seed=0)
    assert draw(study._replace(space=dimensions[::-1]), 3, seed=0) == first
    assert list(first) == list(SPACE)
    others = [draw(study, 4, 0), draw(study, 3, 1), draw(study._replace(method="x"), 3, 0)]
    assert all(first["methods.kd.kd.temperature"] != other["methods.kd.kd.temperature"] for other in others)


def test_draws_are_as_random_as_they_should_be():
    """Kolmogorov-Smirnov at the 0.1 % level for n = 2,000: 1.95 / sqrt(n)."""
    study = Study("a ← b", "ot", (Dimension("x", interval(uniform=[0, 1])),))
    values = sorted(draw(study, number, seed=0)["x"] for number in range(2000))
    distance = max(max(abs(value - i / 2000), abs(value - (i + 1) / 2000)) for i, value in enumerate(values))
    assert distance < 1.95 / math.sqrt(2000)


def test_the_points_of_a_grid_are_its_product():
    space = (Dimension("a", interval(choice=[1, 2])), Dimension("b", interval(choice=["x", "y", "z"])))
    study = Study("s ← t", "m", space)
    assert study.points == 6
    assert [tuple(point(study, number).values()) for number in range(6)] == [(a, b) for a in (1, 2) for b in "xyz"]


@pytest.mark.parametrize(
    ("range_", "message"),
    [
        ({"loguniform": [0, 1]}, "0 and below have no logarithm; begin above 0, or take uniform."),
        ({"logint": [-2, 1]}, "0 and below have no logarithm; begin above 0, or take int."),
        ({"uniform": [2, 1]}, "the lowest comes first and lies below the highest."),
        ({"int": [3, 3]}, "the lowest comes first"),
        ({"int": [1, 2.5]}, "int takes two whole numbers"),
        ({"uniform": [1]}, "uniform takes two numbers"),
        ({"uniform": [False, True]}, "uniform takes two numbers"),
        ({"uniform": [0, math.inf]}, "uniform takes two numbers"),
        ({"choice": []}, "a choice is a list of one value or more."),
        ({"choice": "ab"}, "a choice is a list of one value or more."),
        ({"choice": [1, 1]}, "a value stands twice."),
        ({"loguniformm": [1, 2]}, "Did you mean 'loguniform'?"),
        ([1, 2], "a range is one of uniform, loguniform, int, logint, choice"),
        ({"uniform": [1, 2], "int": [1, 2]}, "a range is one of"),
    ],
)
def test_wrong_ranges_say_what_is_right(range_, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Search.model_validate({"space": {"x": range_}})


def test_a_sweep_without_a_search_is_planned_as_before(sweep_file, planned):
    plain = make(load(sweep_file(methods=METHODS)))
    asked = planned({"kind": "grid", "scheduler": "fifo", "final": None})
    assert asked.studies == ()
    assert [item.trial.key for item in asked.all] == [item.trial.key for item in plain.all]
    labels = [item.label.model_dump(exclude={"stage"}) for item in plain.all]
    assert asked.info.key == plain.info.key == digest({"name": "tiny", "labels": labels})


def test_a_study_is_a_pair_and_a_method_with_its_own_paths(planned):
    lr = {"train.optimizer.lr": {"uniform": [0.01, 0.1]}}
    pairs = [{"teacher": "resnet14", "student": student} for student in ("resnet8", "wrn_16_1")]
    plan = planned({**RANDOM, "space": SPACE | lr}, pairs=pairs)
    paths = [[dimension.path for dimension in study.space] for study in plan.studies]
    assert [study.title for study in plan.studies][:4] == [
        "resnet8 ← resnet14 · student",
        "resnet8 ← resnet14 · kd",
        "resnet8 ← resnet14 · ot",
        "wrn_16_1 ← resnet14 · student",
    ]
    assert paths[:3] == [[*lr], ["methods.kd.kd.temperature", *lr], [*list(SPACE)[:3], *lr]]
    assert plan.students == ()
    assert [configurations(plan.spec.search, study) for study in plan.studies] == [4] * 6
    assert len(set(map(hash, plan.studies))) == 6


def test_a_candidate_is_what_the_file_with_its_values_would_be(planned, sweep_file):
    plan = planned({**RANDOM, "space": SPACE | {"train.batch_size": {"int": [16, 64]}}})
    values = {
        "methods.ot.transport.solver.epsilon": 0.02,
        "methods.ot.transport.layer": 3,
        "train.batch_size": 17,
    }
    made = plan.candidate(plan.studies[2], 7, values)
    written = {
        "ot": {"ce": 1, "transport": {"weight": 10, "layer": 3, "solver": {"name": "sinkhorn", "epsilon": 0.02}}}
    }
    train = {"epochs": 2, "batch_size": 17, "schedule": {"name": "constant"}}
    teacher = {"train": {"batch_size": 32}}
    same = make(load(sweep_file(methods=written, train=train, teacher=teacher)))
    assert [item.trial.key for item in made.planned] == [item.trial.key for item in same.students]
    assert {item.trial.teacher.key for item in made.planned} == {plan.teachers[0].trial.key}
    label = made.planned[1].label
    assert (label.method, label.stage, label.seed) == ("ot", "search", 1)
    assert label.axes == {"transport.solver.epsilon": 0.02, "transport.layer": 3, "train.batch_size": 17}


def test_a_path_into_a_choice_that_the_file_leaves_out_takes_its_default(planned):
    plan = planned({**RANDOM, "space": {"train.optimizer.lr": {"uniform": [0.01, 0.1]}}})
    [made] = plan.candidate(plan.studies[0], 0, {"train.optimizer.lr": 0.02}).planned[:1]
    assert made.trial.train.optimizer.model_dump() == {
        "name": "sgd",
        "lr": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
    }


def test_a_method_may_have_a_dot_in_its_name(planned):
    methods = {"ot": METHODS["ot"], "ot.5": METHODS["kd"]}
    plan = planned({**RANDOM, "space": {"methods.ot.5.kd.weight": {"int": [2, 3]}}}, methods=methods)
    assert [len(study.space) for study in plan.studies] == [0, 1]
    made = plan.candidate(plan.studies[1], 0, {"methods.ot.5.kd.weight": 3})
    assert made.planned[0].label.axes == {"kd.weight": 3}


def test_a_method_that_is_other_for_a_pair_is_searched_as_it_is_there(planned):
    special = {"teacher": "resnet14", "student": "wrn_16_1", "transport": {"cost": "cosine"}}
    methods = {"ot": {**METHODS["ot"], "pairs": [special]}}
    pairs = [{"teacher": "resnet14", "student": student} for student in ("resnet8", "wrn_16_1")]
    space = {"methods.ot.transport.weight": {"int": [1, 5]}}
    plan = planned({**RANDOM, "space": space}, methods=methods, pairs=pairs)
    made = [plan.candidate(study, 0, {"methods.ot.transport.weight": 2}).planned[0].trial for study in plan.studies]
    costs = [(trial.objective["transport"]["cost"], trial.objective["transport"]["weight"]) for trial in made]
    assert costs == [("sqeuclidean", 2), ("cosine", 2)]


def test_a_grid_with_a_scheduler_has_the_trials_of_the_grid(planned, sweep_file):
    axes = {"weight": {"grid": [1, 10]}, "solver": {"name": "sinkhorn", "epsilon": {"grid": [0.02, 0.2, 0.5]}}}
    methods = {"kd": METHODS["kd"], "ot": {"ce": 1, "transport": axes}}
    grid = make(load(sweep_file(methods=methods)))
    plan = planned({"scheduler": {"name": "asha", "grace": 2}}, methods=methods)
    made = [item for study in plan.studies for known in plan.known(study) for item in known.planned]
    assert [item.trial.key for item in made] == [item.trial.key for item in grid.students]
    assert [item.label.axes for item in made] == [item.label.axes for item in grid.students]


def test_methods_get_equal_effort_but_where_there_is_nothing_to_choose(planned):
    plan = planned({**RANDOM, "kind": "optuna"})
    assert [configurations(plan.spec.search, study) for study in plan.studies] == [1, 4, 4]
    assert [len(list(plan.known(study))) for study in plan.studies] == [1, 0, 0]


def test_more_samples_are_the_same_sweep_and_other_ranges_are_not(planned):
    key = planned(RANDOM).info.key
    assert planned({**RANDOM, "samples": 9, "budget": {"hours": 1}}).info.key == key
    assert planned(RANDOM, question="Another?", resources={"cpu": 3}).info.key == key
    others = [{"seed": 1}, {"scheduler": "asha"}, {"space": SPACE | {"methods.kd.kd.weight": {"int": [1, 2]}}}]
    assert len({key, *(planned(RANDOM | other).info.key for other in others)}) == 4


def test_winners_are_trained_again_on_all_images_with_seeds_that_are_new(planned):
    plan = planned({**RANDOM, "final": {"seeds": 3}}, seeds=[0, 5])
    values = {"methods.ot.transport.weight": 2.5}
    final = plan.final({plan.studies[0]: {}, plan.studies[2]: values})
    assert [item.label.seed for item in final.students] == [6, 7, 8] * 2
    assert {item.trial.data.val for item in final.all} == {0}
    assert {item.trial.teacher.key for item in final.students} == {final.teachers[0].trial.key}
    assert final.teachers[0].trial.key != plan.teachers[0].trial.key
    assert {item.trial.objective["transport"]["weight"] for item in final.students[3:]} == {2.5}
    assert {(item.label.stage, *item.label.axes) for item in final.all} == {("final",)}
    assert final.studies == ()
    assert all(item.label.key == item.trial.key for item in final.all)
    assert final.info.key == plan.info.key
    assert final.info.labels == (*(item.label for item in plan.teachers), *(item.label for item in final.all))
    assert final.info.notes[-1] == "Winner of resnet8 ← resnet14 · ot: weight=2.5."
    assert "\n#   resnet8 ← resnet14 · ot: weight=2.5\n" in final.info.yaml


def test_labels_are_added_once(planned):
    plan = planned(RANDOM)
    made = [item.label for item in plan.candidate(plan.studies[0], 0, {}).planned]
    grown = plan.info.with_labels(made).with_labels(made)
    assert grown.labels == (*plan.info.labels, *made)
    assert grown.key == plan.info.key


def test_all_problems_of_a_search_come_together_with_the_others(problems):
    space = {
        "methods.ot.transport.weight": {"uniform": [-1, 1]},
        "methods.ot.transport.layer": {"choice": ["embedding", 9]},
        "methods.ot.transport.solver.epsilom": {"uniform": [0.1, 1]},
        "methods.ott.transport.weight": {"uniform": [0.1, 1]},
        "methods.kd": {"choice": [1]},
        "methods.kd.kd.temperature.x": {"uniform": [0.1, 1]},
        "data.limit": {"int": [1, 2]},
        "trian.ema": {"uniform": [0.1, 0.9]},
        "train.epochs": {"int": [1, 2]},
        "train.batch_size": {"uniform": [1, 2]},
        "methods.ot.transport.solver": {"choice": ["exact"]},
    }
    scheduler = {"name": "asha", "grace": 3}
    text = problems({"kind": "random", "space": space, "scheduler": scheduler}, data={"name": "digits"}, seeds=[0, 0])
    for part in (
        "seeds: 0 stands twice.",
        "search: tuning reads validation images, and none are held out: set data.val",
        "search.samples: is missing",
        "search.scheduler.grace: no configuration trains for longer than train.epochs, 2. Got 3.",
        "search.space.methods.ot.transport.weight: at -1.0: methods.ot.transport.weight: Input should be",
        "search.space.methods.ot.transport.layer: at 9: methods.ot.transport.layer: (resnet8 ← resnet14) there is no",
        "search.space.methods.ot.transport.solver.epsilom: there is no 'epsilom'; there is",
        "Did you mean 'epsilon'?",
        "search.space.methods.ott.transport.weight: there is no method 'ott'; there is student, kd, ot. Did you mean",
        "search.space.methods.kd: is a whole method",
        "search.space.methods.kd.kd.temperature.x: there is nothing below 4",
        "search.space.data.limit: trials that are compared share teacher, data and seeds",
        "search.space.trian.ema: trials that are compared share teacher, data and seeds: a path begins with "
        "`methods.` or `train.`. Did you mean 'train'?",
        "search.space.train.epochs: configurations are compared at equal budget",
        "search.space.train.batch_size: at 1.0: train.batch_size: Input should be a valid integer",
        "search.space.methods.ot.transport.solver.epsilom: lies within methods.ot.transport.solver",
    ):
        assert part in text, f"{part}\n{text}"


def test_what_cannot_be_read_of_a_search_hides_no_other_problem_and_makes_none(problems):
    """Without its wrong range the first method would make the same study as the second, without samples none could."""
    space = {
        "methods.a.kd.temperature": {"uniform": [8, 1]},
        "methods.a.kd.weigth": {"uniform": [0.1, 1]},
        "train.batch_size": {"int": [0, 10]},
        "train.optimizer.lr": {"normal": [1, 2]},
    }
    text = problems(
        {"kind": "random", "space": space, "samples": 0, "scheduler": {"name": "ahsa", "grace": 1}},
        methods={"a": {"ce": 1, "kd": 1}, "b": {"ce": 1, "kd": 1}},
    )
    for part in (
        "search.space.methods.a.kd.temperature: uniform: the lowest comes first",
        "search.space.methods.a.kd.weigth: there is no 'weigth'",
        "search.space.train.batch_size: at 0: train.batch_size: Input should be greater than 0",
        "search.space.train.optimizer.lr: there is no range 'normal'",
        "search.samples: Input should be greater than 0. Got 0.",
        "search.scheduler.name: there is no 'ahsa'",
    ):
        assert part in text, f"{part}\n{text}"
    assert "6 problems" in text


def test_a_search_of_an_unknown_kind_is_judged_by_no_other(problems):
    text = problems({"kind": "bayes", "space": {"train.batch_size": {"int": [8, 16]}}, "samples": 3})
    assert "1 problem\n  search.kind: " in text


@pytest.mark.parametrize(
    ("search", "parts", "message"),
    [
        ({"space": SPACE, "scheduler": "asha"}, {}, "search.space: axes of a grid stand in the methods"),
        ({"samples": 3, "scheduler": "asha"}, {}, "search.samples: a grid has as many configurations"),
        ({"kind": "optuna", "samples": 3}, {}, "search.space: is missing"),
        ({"final": {"seeds": 2}}, {"data": {"name": "digits"}}, "search: tuning reads validation images"),
        ({"kind": "bayes"}, {}, "search.kind"),
        ({"scheduler": "ashaa"}, {}, "search.scheduler.name: there is no 'ashaa'; there is fifo, asha"),
        ({"scheduler": {"name": "fifo", "grace": 2}}, {}, "search.scheduler.grace: unknown key; allowed: name."),
        ({"budget": {}}, {}, "search.budget: name hours or trials"),
        ({"stop": {"target": 101}}, {}, "search.stop.target"),
        (RANDOM, {"resources": {"gpus_per_trial": 2}}, "search: trains each configuration in one process"),
        (
            {"kind": "random", "space": {"methods.kd.kd.weight": {"int": [1, 2]}}, "samples": 2},
            {"methods": {"kd": {"ce": 1, "kd": {"temperature": {"grid": [1, 2]}}}}},
            "methods.kd.kd.temperature: an axis needs search.kind: grid",
        ),
        (
            {"kind": "random", "space": {"train.optimizer.lr": {"uniform": [0.1, 1]}}, "samples": 2},
            {"methods": {"a": {"ce": 1}, "b": {"ce": {"weight": 1.0}}}},
            "methods.b: makes the same study as a",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(problems, search, parts, message):
    assert message in problems(search, **parts)


def test_methods_that_differ_in_their_space_alone_are_no_twins(planned):
    methods = {"a": {"ce": 1, "kd": 1}, "b": {"ce": 1, "kd": 1}}
    plan = planned({**RANDOM, "space": {"methods.a.kd.weight": {"int": [1, 2]}}}, methods=methods)
    assert [study.method for study in plan.studies] == ["a", "b"]


def test_values_that_do_not_go_together_are_named_when_they_are_drawn(planned):
    space = {"train.batch_size": {"int": [2, 64]}, "train.accumulate": {"int": [1, 16]}}
    plan = planned({**RANDOM, "space": space, "samples": 40})
    known = [candidate.planned[0].trial.train for candidate in plan.known(plan.studies[0])]
    assert 0 < len(known) < 40
    assert all(train.accumulate <= train.batch_size // 2 for train in known)
    with pytest.raises(ConfigError, match="16 parts of a batch of 4 are below 2 images"):
        plan.candidate(plan.studies[0], 0, {"train.batch_size": 4, "train.accumulate": 16})


def test_the_notes_say_effort_rule_and_what_is_searched(planned):
    notes = "\n".join(
        planned({**RANDOM, "scheduler": "asha", "budget": {"trials": 9}, "final": {"seeds": 1}}).info.notes
    )
    for part in (
        "random, 3 studies (pair × method), at most 1 or 4 configurations each, scheduler asha (grace 1, factor 3), ",
        "mean over seeds 0, 1",
        "Searched for student: nothing, it has one configuration.",
        "methods.ot.transport.layer of ['embedding', 3]",
        "with seed 2, which the search has not seen",
        "2 seeds per configuration",
        "learning rate 0.05, constant schedule.",
    ):
        assert part in notes, notes


def test_a_recipe_that_is_searched_is_not_said_to_be_that_of_the_file(planned):
    plan = planned({**RANDOM, "space": {"train.optimizer.lr": {"uniform": [0.01, 0.1]}}})
    assert "learning rate 0.05, constant schedule, but for what is searched." in plan.info.notes[1]
