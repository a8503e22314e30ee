"""A student's weights go to MLflow and come back as a model that predicts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from otkd.core import plugins
from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.layout import Layout
from otkd.core.trial import Data
from otkd.track.mlflow import MlflowSink
from otkd.track.store import tracking_uri

CARD = DataCard(
    classes=7, channels=2, side=5, train=9, test=9, mean=(0.25, 0.5), std=(0.5, 2.0), augment=Augment(), about=""
)


class Net(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels * 25, classes)
        self.norm = nn.BatchNorm1d(classes)

    def forward(self, image: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.norm(self.fc(image.flatten(1))))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    family = SimpleNamespace(build=lambda name, classes, channels: Net(classes, channels))
    monkeypatch.setattr(Data, "card", CARD)
    monkeypatch.setattr(plugins, "family_of", lambda name: {"small": "toynets"}[name])
    monkeypatch.setattr(plugins, "load", lambda group, name: family if group == "models" else SimpleNamespace())


@pytest.mark.usefixtures("small")
def test_a_student_predicts_from_mlflow(layout: Layout, invented: Any, say: Any) -> None:
    torch.manual_seed(0)
    net, trial = Net(7, 2), invented.students[0]
    net(torch.randn(13, 2, 5, 5))  # running statistics that are not the initial ones
    folder = layout.trial(trial.key)
    folder.path.mkdir(parents=True)
    torch.save(net.state_dict(), folder.last)

    for _ in range(2):  # the second time nothing is added
        sink = MlflowSink(invented.info, layout)
        sink.start(trial)
        sink.finish(say.result(trial.key))
        sink.close()

    mlflow.set_tracking_uri(tracking_uri(layout))
    (model,) = mlflow.search_logged_models(output_format="list", experiment_ids=[sink.store.experiment])
    assert (model.name, str(model.status)) == ("student", "READY")
    run = mlflow.get_run(model.source_run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]

    images = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 5), dtype=np.uint8)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CARD.mean, CARD.std))
    expected = net.eval()((torch.from_numpy(images) / 255 - mean) / std).logits.detach().numpy()
    for uri in (f"models:/{model.model_id}", f"runs:/{run.info.run_id}/student"):
        served = mlflow.pyfunc.load_model(uri)
        np.testing.assert_allclose(served.predict(images), expected, rtol=1e-6)
    assert served.metadata.signature.inputs.inputs[0].shape == (-1, 2, 5, 5)
    with pytest.raises(mlflow.exceptions.MlflowException, match="uint8"):
        served.predict(images.astype(np.float32))


@pytest.mark.usefixtures("small")
def test_a_model_left_half_done_is_done_again(layout: Layout, invented: Any, say: Any) -> None:
    trial = invented.students[0]
    folder = layout.trial(trial.key)
    folder.path.mkdir(parents=True)
    torch.save(Net(7, 2).state_dict(), folder.last)
    sink = MlflowSink(invented.info, layout)
    sink.start(trial)
    sink.flush(10)
    client, experiment = sink.store.client, sink.store.experiment
    run = next(r for r in client.search_runs([experiment]) if r.data.tags.get("otkd.key") == trial.key)
    client.create_logged_model(experiment, name="student", source_run_id=run.info.run_id)
    sink.finish(say.result(trial.key))
    sink.close()
    (model,) = client.search_logged_models([experiment])
    assert str(model.status) == "READY"
