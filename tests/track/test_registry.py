"""Registered models: a version for each trial, once; the champion is the best of them."""

from __future__ import annotations

from typing import Any

import pytest

from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Trial
from otkd.track import registry
from otkd.track.registry import CHAMPION, beats, model_name, register
from otkd.track.store import Store, connect
from otkd.track.weights import Kept

VAL, LAST = names.BEST_VAL_TOP1, names.test("last", "top1")


@pytest.fixture
def store(layout: Layout) -> Store:
    return connect(layout)


@pytest.fixture
def registered(store: Store, invented: Any, say: Any) -> Any:
    """Registers a trial with these final figures; returns the name and the number of its version."""

    def do(trial: Trial, weights: str = "last", **figures: float) -> tuple[str, str]:
        label = next((label for label in invented.info.labels if label.key == trial.key), None)
        client = store.client
        run_id = client.create_run(store.experiment).info.run_id
        model = client.create_logged_model(store.experiment, name="student", source_run_id=run_id)
        result: TrialResult = say.result(trial.key, metrics={key.replace("_", "/"): v for key, v in figures.items()})
        kept = Kept(model.model_id, model.artifact_location)
        version = register(store, run_id, kept, trial, result, label, weights)
        return version.name, str(version.version)

    return do


def champion(store: Store, name: str) -> str:
    return str(store.client.get_model_version_by_alias(name, CHAMPION).version)


def test_a_trial_has_one_version(store: Store, registered: Any, invented: Any) -> None:
    trial = invented.students[0]
    first = registered(trial, test_last_top1=70.0)
    assert first == ("otkd-small-from-big-toy", "1")
    assert registered(trial, test_last_top1=99.0) == first, "the same trial again"
    (version,) = store.client.search_model_versions(f"name = '{first[0]}'")
    assert version.tags[names.TAG_KEY] == trial.key
    assert version.tags[LAST] == "70"
    assert version.tags[names.TAG_METHOD] == "kd"
    assert "for want of validation images" in version.tags[registry.TAG_CHOSEN]
    assert version.description.startswith("small ← big · kd · seed 0: 1 × ce + 0.9 × kd; test top-1 **70.00 %**")
    assert store.client.get_registered_model(first[0]).description.startswith("small, taught by big ")


def test_teachers_have_models_of_their_own(store: Store, registered: Any, invented: Any) -> None:
    assert registered(invented.teachers[0], test_last_top1=80.0) == ("otkd-big-toy", "1")
    assert store.client.get_registered_model("otkd-big-toy").description.startswith("big, on toy. ")
    assert registered(invented.teachers[1], test_last_top1=80.0) == ("otkd-big-toy", "2")


def test_names_have_nothing_that_mlflow_refuses(registered: Any, invented: Any) -> None:
    trial = invented.students[0]
    data = trial.data.model_copy(update={"name": "folder/my pets: 'all'"})
    trial = trial.model_copy(update={"data": data})
    assert model_name(trial, None) == "otkd-small-from-big-folder_my_pets_all_"
    assert registered(trial, test_last_top1=1.0)[1] == "1"


def test_the_best_is_the_champion(store: Store, registered: Any, invented: Any) -> None:
    one, two, three, four = invented.students
    name, _ = registered(one, test_last_top1=70.0)
    registered(two, test_last_top1=69.0)
    assert champion(store, name) == "1"
    registered(three, test_last_top1=71.0)
    assert champion(store, name) == "3"
    registered(four, weights="best", val_best_top1=50.0, test_last_top1=60.0)
    assert champion(store, name) == "4", "chosen without a look at the test set"
    registered(three, test_last_top1=71.0)
    assert champion(store, name) == "4", "said again, nothing changes"


def test_a_champion_that_was_removed_is_replaced(store: Store, registered: Any, invented: Any) -> None:
    name, version = registered(invented.students[0], test_last_top1=90.0)
    store.client.delete_model_version(name, version)
    assert registered(invented.students[1], test_last_top1=10.0)[0] == name
    assert store.client.get_model_version_by_alias(name, CHAMPION).tags[LAST] == "10"


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        ({VAL: "70"}, {VAL: "69.5", LAST: "99"}, True),
        ({VAL: "9"}, {VAL: "10"}, False),
        ({LAST: "99"}, {VAL: "1"}, False),
        ({VAL: "70"}, {VAL: "70"}, False),
        ({LAST: "1"}, {}, True),
    ],
)
def test_who_beats_whom(new: dict[str, str], old: dict[str, str], better: bool) -> None:
    assert beats(new, old) is better
