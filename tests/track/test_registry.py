"""Registered models: a version for each trial, once; the champion is the best of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from otkd.core import names
from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Data, Trial
from otkd.track import registry
from otkd.track.registry import CHAMPION, TAG_IMAGES, TAG_TEST, TAG_TRAINING, beats, model_name, register
from otkd.track.store import Store, connect
from otkd.track.weights import Kept

VAL, LAST = names.BEST_VAL_TOP1, names.test("last", "top1")
CARD = DataCard(
    classes=7, channels=2, side=5, train=1000, test=9, mean=(0.25, 0.5), std=(0.5, 2.0), augment=Augment(), about=""
)


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "card", CARD)


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


def on(trial: Trial, **changes: Any) -> Trial:
    """The same trial on other images."""
    return trial.model_copy(update={"data": trial.data.model_copy(update=changes)})


def test_more_training_images_come_before_better_figures(store: Store, registered: Any, invented: Any) -> None:
    trial = invented.students[0]
    name, _ = registered(on(trial, limit=500, val=0.1), val_best_top1=99.0, test_last_top1=98.0)
    held_out = on(trial, val=100.0)
    registered(held_out, val_best_top1=70.0, test_last_top1=70.0)
    assert champion(store, name) == "2"
    registered(on(trial, val=0.0), test_last_top1=60.0)
    assert champion(store, name) == "3"
    registered(held_out, val_best_top1=70.0, test_last_top1=70.0)
    registered(on(trial, limit=999), test_last_top1=99.0)
    assert champion(store, name) == "3"
    counts = {v.version: v.tags[TAG_IMAGES] for v in store.client.search_model_versions(f"name = '{name}'")}
    assert {int(version): count for version, count in counts.items()} == {1: "450", 2: "900", 3: "1000", 4: "999"}


def test_other_options_are_another_data_set_and_the_later_one_counts(
    store: Store, registered: Any, invented: Any
) -> None:
    easy, hard = (on(invented.students[0], options={"classes": classes}) for classes in (2, 100))
    name, _ = registered(easy, val_best_top1=99.0, test_last_top1=99.0)
    registered(hard, val_best_top1=30.0, test_last_top1=30.0)
    assert champion(store, name) == "2"
    registered(easy, val_best_top1=99.0, test_last_top1=99.0)
    assert champion(store, name) == "2", "said again, nothing changes"


def version(number: int, images: str = "9", training: str = "a", **figures: str) -> Any:
    tags = {TAG_TEST: "t", TAG_IMAGES: images, TAG_TRAINING: training}
    return SimpleNamespace(version=str(number), tags=tags | {key.replace("_", "/"): v for key, v in figures.items()})


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        (version(2, val_best_top1="70"), version(1, val_best_top1="69.5", test_last_top1="99"), True),
        (version(2, val_best_top1="9"), version(1, val_best_top1="10"), False),
        (version(2, test_last_top1="99"), version(1, val_best_top1="1"), False),
        (version(2, val_best_top1="70"), version(1, val_best_top1="70"), False),
        (version(2, test_last_top1="1"), version(1), True),
        (version(2, val_best_top1="99", training="b"), version(1, val_best_top1="1"), False),
        (version(2, images="10", test_last_top1="1"), version(1, val_best_top1="99"), True),
        (version(2, test_last_top1="1"), SimpleNamespace(version="1", tags={VAL: "99"}), True),
        (SimpleNamespace(version="1", tags={VAL: "99"}), version(2, test_last_top1="1"), False),
        (SimpleNamespace(version="2", tags={VAL: "99"}), SimpleNamespace(version="1", tags={VAL: "98"}), True),
    ],
)
def test_who_beats_whom(new: Any, old: Any, better: bool) -> None:
    assert beats(new, old) is better
