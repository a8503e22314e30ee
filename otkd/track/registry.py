"""Networks in MLflow's model registry: a model for each pair and each teacher, a version for each trial.

`champion` names the best version of a model: `mlflow.pyfunc.load_model("models:/otkd-small-from-big-digits@champion")`.
More training images come first. Of versions with the same ones, best is by validation images; only where they have
none, by the test set, and then the version's tag says so. Where the data set itself is another (other options, a user's
folder that has grown), nothing can be compared, and the later version is the champion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from otkd.core import names
from otkd.core.records import Label, TrialResult
from otkd.core.trial import Data, Trial
from otkd.track.inputs import dataset_inputs
from otkd.track.notes import plain, summary
from otkd.track.store import Store
from otkd.track.weights import Kept

CHAMPION = "champion"
TAG_WEIGHTS, TAG_CHOSEN, TAG_IMAGES = "otkd.weights", "otkd.chosen_by", "otkd.training_images"
TAG_TRAINING, TAG_TEST = "otkd.digest.training", "otkd.digest.test"
"""Digests of the images, as the run's inputs have them."""
BY_VAL = f"{names.BEST_VAL_TOP1}: accuracy on validation images, which training does not see"
BY_TEST = f"{names.test('last', 'top1')}: accuracy on the test set itself, for want of validation images"
FIGURES = (names.BEST_VAL_TOP1, names.BEST_EPOCH, names.test("best", "top1"), names.test("last", "top1"))
VERSIONS = "mlflow.modelVersions"
"""Tag of a logged model by which MLflow's page of a run names the versions made of it."""


def model_name(trial: Trial, label: Label | None) -> str:
    """`otkd-<student>-from-<teacher>-<data>`, or `otkd-<network>-<data>` for a teacher or a network without one."""
    student, teacher = _networks(trial, label)
    parts = [student, *(["from", teacher] if teacher else []), trial.data.name]
    return "-".join(["otkd", *(re.sub(r"[^\w.+]+", "_", part) for part in parts)])


def about(trial: Trial, label: Label | None) -> str:
    """The registered model's description, in Markdown."""
    student, teacher = _networks(trial, label)
    by = f", taught by {teacher} or, for comparison, by nobody" if teacher else ""
    return (
        f"{plain(f'{student}{by}, on {trial.data.name}')}. Each version is a trial of otkd; `{CHAMPION}` is the one "
        f"with the most training images, of equal ones that with the best accuracy on validation images, or where "
        f"nothing was held out on test images."
    )


def _networks(trial: Trial, label: Label | None) -> tuple[str, str]:
    """Names of student and teacher; that of the teacher is empty where there is none."""
    if label is not None:
        return label.student, label.teacher
    return trial.student.name, trial.teacher.student.name if trial.teacher else ""


def register(
    store: Store, run_id: str, kept: Kept, trial: Trial, result: TrialResult, label: Label | None, weights: str
) -> ModelVersion:
    """Make a version of a kept model, once for each trial, and let the better of it and the champion be the champion.

    Args:
        weights: which were kept, `last` or `best`.
    """
    name = model_name(trial, label)
    _model(store, name, about(trial, label))
    version = _version(store, name, trial.key)
    if version is None:
        tags = _tags(trial, result, label, weights)
        version = store.client.create_model_version(
            name,
            kept.place,
            run_id,
            tags,
            description=summary(trial, result, label),
            await_creation_for=0,
            model_id=kept.id,
        )
        versions = json.dumps([{"name": name, "version": version.version}])
        store.client.set_logged_model_tags(kept.id, {VERSIONS: versions})
    _compete(store, name, version)
    return version


def beats(version: ModelVersion, champion: ModelVersion) -> bool:
    """Whether a version is to replace the champion; of equals, and of other images in equal number, the older stays."""
    new, old = version.tags, champion.tags
    if new.get(TAG_TEST) != old.get(TAG_TEST):
        return int(version.version) > int(champion.version)
    if new.get(TAG_IMAGES) != old.get(TAG_IMAGES):
        return int(new[TAG_IMAGES]) > int(old[TAG_IMAGES])
    return new.get(TAG_TRAINING) == old.get(TAG_TRAINING) and _rank(new) > _rank(old)


def _rank(tags: Mapping[str, str]) -> tuple[bool, float]:
    val = tags.get(names.BEST_VAL_TOP1)
    return (True, float(val)) if val else (False, float(tags.get(names.test("last", "top1"), "-inf")))


@lru_cache(maxsize=1024)
def _model(store: Store, name: str, description: str) -> None:
    """Make the registered model where it is missing."""
    try:
        store.client.create_registered_model(name, {"otkd": "true"}, description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(store: Store, name: str, key: str) -> ModelVersion | None:
    found = store.client.search_model_versions(f"name = '{name}' and tag.`{names.TAG_KEY}` = '{key}'", max_results=1)
    return found[0] if found else None


def _tags(trial: Trial, result: TrialResult, label: Label | None, weights: str) -> dict[str, str]:
    figures = {name: f"{result.metrics[name]:.6g}" for name in FIGURES if name in result.metrics}
    chosen = BY_VAL if names.BEST_VAL_TOP1 in figures else BY_TEST
    known = {names.TAG_KEY: trial.key, names.TAG_SEED: str(trial.seed), TAG_WEIGHTS: weights, TAG_CHOSEN: chosen}
    known |= _image_tags(trial.data)
    if label is not None:
        known |= {names.TAG_METHOD: label.method, names.TAG_PAIR: label.pair}
    return known | figures


def _image_tags(data: Data) -> dict[str, str]:
    digests = {part.tags[0].value: part.dataset.digest for part in dataset_inputs(data)}
    images = min(data.limit or data.card.train, data.card.train)
    held_out = data.val if data.val >= 1 else round(data.val * images)
    return {
        TAG_TRAINING: digests["training"],
        TAG_TEST: digests["test"],
        TAG_IMAGES: str(images - int(held_out)),
    }


def _compete(store: Store, name: str, version: ModelVersion) -> None:
    champion = _champion(store, name)
    if champion is None or beats(version, champion):
        store.client.set_registered_model_alias(name, CHAMPION, version.version)


def _champion(store: Store, name: str) -> ModelVersion | None:
    try:
        return store.client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return None
