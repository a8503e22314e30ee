"""The images of a trial as MLflow's dataset inputs: one for training, one for validation, one for the test."""

from __future__ import annotations

import json
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag

from otkd.core import names
from otkd.core.trial import Data, digest


def dataset_inputs(data: Data) -> list[DatasetInput]:
    """Each part under the data set's name, with its context and a digest that is the same for the same images.

    The digest covers what chooses the images (name, options, for the user's own ones also what a survey found, and for
    training and validation the split), and not what is done to them in training.
    """
    whole = data.model_dump(mode="json", include={"name", "options"})
    split = whole | data.model_dump(mode="json", include={"val", "limit", "split_seed"})
    parts = {"training": split, "validation": split, "test": whole}
    return [_input(part, of) for part, of in parts.items() if part != "validation" or data.val]


def _input(part: str, of: dict[str, Any]) -> DatasetInput:
    source = CodeDatasetSource({"otkd": json.dumps({**of, "part": part}, sort_keys=True)})
    facts = MetaDataset(source, name=of["name"], digest=digest({**of, "part": part})).to_dict()
    return DatasetInput(Dataset(**facts), [InputTag(names.DATA_CONTEXT, part)])
