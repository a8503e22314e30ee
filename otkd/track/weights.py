"""A student's weights as an MLflow model: signed, loadable by `mlflow.pyfunc.load_model`, and no pickled code.

MLflow gets the state dict and `served_model.py`, the code that builds the network by name ("models from code").
That takes a quarter of a second a model, where an exported graph (`pt2`) takes seconds.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy import dtype

from otkd.core.cards import DataCard
from otkd.core.trial import Trial
from otkd.track.store import Store

MODEL = "student"
"""Name of the model in its run: `runs:/<run id>/student`."""

CODE = Path(__file__).with_name("served_model.py")


def log_student(store: Store, run_id: str, trial: Trial, weights: Path) -> None:
    """Keep the weights file as the MLflow model `student` of a run; a model that is there already stays."""
    if _logged(store, run_id):
        return
    client = store.client
    tags = {"architecture": trial.student.name, "data": trial.data.name}
    model = client.create_logged_model(store.experiment, name=MODEL, source_run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory(prefix="otkd-model-") as folder:
        head = Model(
            artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id, model_uuid=model.model_id
        )
        _save(Path(folder, "model"), head, trial, weights)
        client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=trial.train.epochs)])


def _logged(store: Store, run_id: str) -> bool:
    """Whether the run has its model; what an interruption left half done is removed, so that it can be done again."""
    if store.client.get_run(run_id).outputs.model_outputs:
        return True
    condition = f"source_run_id = '{run_id}'"
    for model in store.client.search_logged_models([store.experiment], filter_string=condition):
        store.client.delete_logged_model(model.model_id)
    return False


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
    images = TensorSpec(dtype("uint8"), (-1, card.channels, card.side, card.side))
    logits = TensorSpec(dtype("float32"), (-1, card.classes))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([logits]))


def _requirements() -> list[str]:
    found = []
    for package in ("otkd", "torch", "torchvision", "numpy"):
        try:
            found.append(f"{package}=={version(package).split('+')[0]}")
        except PackageNotFoundError:
            pass
    return found
