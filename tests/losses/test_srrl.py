"""SRRL against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from otkd.core.errors import OtkdError
from otkd.losses.srrl import Config, Loss


def test_equals_loops(scene: Any) -> None:
    loss = scene.knowing().loss("srrl")
    convolution, norm = loss.connector[0], loss.connector[1]
    generator = torch.Generator().manual_seed(5)
    for parameter in norm.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    x = scene.out_s.embedding.double().numpy() @ convolution.weight.detach().double().numpy()[:, :, 0, 0].T
    h_t, z_t = scene.out_t.embedding.double().numpy(), scene.out_t.logits.double().numpy()
    classifier, bias = (scene.known[name].double().numpy() for name in ("classifier_t", "bias_t"))
    features, made = 0.0, np.empty((5, 17))
    for d in range(17):
        column = (x[:, d] - x[:, d].mean()) / np.sqrt(x[:, d].var() + 1e-5)
        made[:, d] = np.maximum(column * norm.weight[d].item() + norm.bias[d].item(), 0)
        features += ((made[:, d] - h_t[:, d]) ** 2).sum() / (5 * 17)
    logits = sum(
        (sum(classifier[k, d] * made[b, d] for d in range(17)) + bias[k] - z_t[b, k]) ** 2 / (5 * 7)
        for b in range(5)
        for k in range(7)
    )
    result = loss(scene.out_s, scene.out_t, scene.batch)
    assert result.parts["features"].item() == pytest.approx(features, rel=1e-4)
    assert result.parts["logits"].item() == pytest.approx(logits, rel=1e-4)
    assert result.value.item() == pytest.approx(features + logits, rel=1e-4)


def test_the_teachers_classifier_is_not_trained(scene: Any) -> None:
    loss = scene.knowing().loss("srrl")
    assert {name for name, _ in loss.named_parameters()} == {
        "connector.0.weight",
        "connector.1.weight",
        "connector.1.bias",
    }


@pytest.mark.parametrize("missing", ["classifier_t", "bias_t"])
def test_without_classifier_it_is_refused(scene: Any, missing: str) -> None:
    probe = scene.knowing().probe()
    with pytest.raises(OtkdError, match="ends in a linear layer with a bias"):
        Loss(Config(), probe._replace(**{missing: None}))


def test_without_teacher_it_is_refused(scene: Any) -> None:
    with pytest.raises(OtkdError, match="there is none"):
        Loss(Config(), scene.knowing().probe()._replace(teacher=None))
