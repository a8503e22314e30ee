"""The code of a network kept in MLflow; MLflow copies this file beside the weights and runs it to load the model.

`predict` takes images as they are stored: uint8, (N, C, H, W), 0 to 255. It scales and normalises them as training did,
and returns logits, float32, (N, K). Loading needs otkd and torch installed; weights are read with `weights_only=True`.
"""

from __future__ import annotations

import warnings
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch
from mlflow.models import set_model

from otkd.core import plugins

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow asks for type hints that it cannot take for arrays

    class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, unused-ignore]
        """A network of otkd behind MLflow's `predict`."""

        def load_context(self, context: Any) -> None:
            """Build the network by name and fill in its weights."""
            config = context.model_config
            name = config["architecture"]
            family = plugins.load("models", plugins.family_of(name))
            self.network = family.build(name, config["classes"], config["channels"])
            weights = torch.load(context.artifacts["weights"], map_location="cpu", weights_only=True)
            for term in config["terms"]:
                rebuild = getattr(plugins.load("losses", term), "rebuild", None)
                self.network = self.network if rebuild is None else rebuild(self.network, weights)
            self.network.load_state_dict(weights)
            self.network.eval()
            self.mean_C11 = torch.tensor(config["mean"]).view(-1, 1, 1)
            self.std_C11 = torch.tensor(config["std"]).view(-1, 1, 1)

        def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
            """Logits (N, K) of uint8 images (N, C, H, W)."""
            image_NCHW = torch.from_numpy(np.ascontiguousarray(model_input)).float() / 255
            with torch.inference_mode():
                return self.network((image_NCHW - self.mean_C11) / self.std_C11).logits.float().numpy()


set_model(ServedModel())
