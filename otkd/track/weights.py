"""A network's weights as an MLflow model: signed, loadable by `mlflow.pyfunc.load_model`, and no pickled code.

MLflow gets the state dict and `served_model.py`, the code that builds the network by name ("models from code").
That takes a quarter of a second a model, where an exported graph (`pt2`) takes seconds.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from otkd.core.cards import DataCard
from otkd.core.trial import Trial
from otkd.track.store import Store

CODE = Path(__file__).with_name("served_model.py")


class Kept(NamedTuple):
    """A model that MLflow has."""

    id: str
    place: str
    """Address of its files."""


def keep_model(store: Store, run_id: str, trial: Trial, weights: Path, name: str) -> Kept:
    """Keep the weights file as the MLflow model `runs:/<run id>/<name>`; a model that is there already stays."""
    kept = _kept(store, run_id)
    if kept is not None:
        return kept
    client = store.client
    tags = {"architecture": trial.student.name, "data": trial.data.name, "weights": weights.stem}
    model = client.create_logged_model(store.experiment, name=name, source_run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory(prefix="otkd-model-") as folder:
        head = Model(
            artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id, model_uuid=model.model_id
        )
        _save(Path(folder, "model"), head, trial, weights)
        client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=trial.train.epochs)])
    return Kept(model.model_id, model.artifact_location)


def _kept(store: Store, run_id: str) -> Kept | None:
    """The run's model; what an interruption left half done is removed, so that it can be done again."""
    outputs = store.client.get_run(run_id).outputs.model_outputs
    if outputs:
        model = store.client.get_logged_model(outputs[0].model_id)
        return Kept(model.model_id, model.artifact_location)
    condition = f"source_run_id = '{run_id}'"
    for model in store.client.search_logged_models([store.experiment], filter_string=condition):
        store.client.delete_logged_model(model.model_id)
    return None


def _save(path: Path, head: Model, trial: Trial, weights: Path) -> None:
    import mlflow.pyfunc

    card = trial.data.card
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.pyfunc")
    mlflow.pyfunc.save_model(
        str(path),
        mlflow_model=head,
        python_model=str(CODE),
        artifacts={"weights": str(weights.resolve())},
        model_config=_config(trial, card),
        signature=_signature(card),
        input_example=_example(card),
        pip_requirements=_requirements(),
    )
    for cache in path.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)


def _config(trial: Trial, card: DataCard) -> dict[str, Any]:
    return {
        "architecture": trial.student.name,
        "terms": list(trial.objective),
        "classes": card.classes,
        "channels": card.channels,
        "mean": list(card.mean),
        "std": list(card.std),
    }


def _signature(card: DataCard) -> ModelSignature:
    images = TensorSpec(np.dtype("uint8"), (-1, card.channels, card.side, card.side))
    logits = TensorSpec(np.dtype("float32"), (-1, card.classes))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([logits]))


def _example(card: DataCard) -> NDArray[np.uint8]:
    """One image (1, C, H, W) with every value of a pixel: the tracker has no images of the data set."""
    shape = (1, card.channels, card.side, card.side)
    return (np.arange(math.prod(shape)) % 256).astype(np.uint8).reshape(shape)


def _requirements() -> list[str]:
    found = []
    for package in ("otkd", "torch", "torchvision", "numpy"):
        try:
            found.append(f"{package}=={version(package).split('+')[0]}")
        except PackageNotFoundError:
            pass
    return found
