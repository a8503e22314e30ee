"""The trial key is a contract: these digits may change only with a note in the changelog."""

import pytest
from pydantic import ValidationError

from otkd.core import plugins
from otkd.core.trial import Augment, Data, Model, Sgd, Step, Train, Trial, digest


def trial(**changes):
    parts = {
        "data": Data(name="digits", val=0.2, augment=Augment(pad=1)),
        "student": Model(name="resnet8"),
        "objective": {"ce": {"weight": 1.0}, "kd": {"weight": 0.9, "temperature": 4.0}},
        "train": Train(epochs=3, optimizer=Sgd(name="sgd", lr=0.05), schedule=Step(name="step", milestones=(2,))),
        "seed": 1,
    }
    return Trial(**{**parts, **changes})


def test_key_of_a_reference_trial_is_pinned():
    assert trial().key == "9db6cd1822b7089d"


def test_spelling_out_a_default_changes_no_key():
    assert trial(objective={"ce": {}, "kd": {"weight": 0.9}}).key == trial().key
    usual = trial(data=Data(name="digits", val=0.2))
    assert usual.data.augment == Augment(pad=1)
    assert usual.key == trial().key


def test_key_survives_json():
    original = trial(teacher=trial(objective={"ce": {"weight": 1.0}}))
    assert Trial.model_validate_json(original.model_dump_json()).key == original.key


def test_key_does_not_depend_on_the_order_of_terms():
    swapped = {"kd": {"temperature": 4.0, "weight": 0.9}, "ce": {"weight": 1.0}}
    assert trial(objective=swapped).key == trial().key


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"student": Model(name="resnet20")},
        {"data": Data(name="digits", val=0.1, augment=Augment(pad=1))},
        {"objective": {"ce": {"weight": 1.0}}},
        {"train": Train(epochs=4)},
        {"teacher": trial()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_can_change_a_result_changes_the_key(change):
    assert trial(**change).key != trial().key


def test_cohort_is_shared_by_trials_that_differ_in_objective_only():
    assert trial().cohort == trial(objective={"ce": {"weight": 1.0}}).cohort
    assert trial().cohort != trial(seed=2).cohort


def test_trials_are_frozen_and_strict():
    with pytest.raises(ValidationError):
        trial().seed = 3
    with pytest.raises(ValidationError):
        trial(seed="1")
    with pytest.raises(ValidationError):
        Data(name="digits", vall=0.1)


def test_digest_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="Out of range"):
        digest({"x": float("nan")})


def test_a_changed_copy_has_a_key_of_its_own():
    original = trial()
    assert original.key != original.model_copy(update={"seed": 9}).key


@pytest.mark.parametrize("options", [5, 0, "abc", "", [1], []])
@pytest.mark.parametrize("name", ["digits", "folder/pets"])
def test_options_are_a_mapping(name, options):
    with pytest.raises(ValidationError) as caught:
        Data(name=name, options=options)
    (problem,) = plugins.problems_of(caught.value, Data)
    assert str(problem) == f"options: has to be a mapping, as in {{key: value}}. Got {options!r}."


def test_a_wrong_shape_is_told_in_words_of_a_sweep_file():
    with pytest.raises(ValidationError) as caught:
        Trial(data="digits", student=Model(name="resnet8"), objective={}, train=Train(epochs=1, batch_size=8))
    told = {problem.path: problem.message for problem in plugins.problems_of(caught.value, Trial)}
    assert told["data"].startswith("has to be a mapping, as in {key: value}, with name, options, val")
    with pytest.raises(ValidationError) as caught:
        Step(name="step", milestones=3)
    (problem,) = plugins.problems_of(caught.value, Step)
    assert str(problem) == "milestones: has to be a list, as in [a, b]. Got 3."


def test_options_may_be_left_empty():
    assert Data(name="digits", options=None) == Data(name="digits")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("digits", "Leave skip out."), ("parquet/pets", "Add `options: {stream: true}`, or leave skip out.")],
)
def test_only_streamed_images_can_be_skipped(name, way_out):
    with pytest.raises(ValidationError) as caught:
        Data(name=name, skip=3)
    (problem,) = plugins.problems_of(caught.value, Data, "data")
    assert str(problem) == (
        f"data.skip: images of {name} are held in memory; only streamed ones can be left out. Got 3. {way_out}"
    )


@pytest.mark.parametrize(
    ("name", "options"), [("folder/pets", {}), ("parquet/pets", {"stream": True}), ("imagenet", {}), ("not known", {})]
)
def test_streamed_images_can_be_skipped(name, options):
    assert Data(name=name, options=options, skip=3).skip == 3
