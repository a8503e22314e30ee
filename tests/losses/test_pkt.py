"""PKT against plain loops and torchdistill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import PKTLoss

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.pkt import Config, Loss


def neighbours(x: Any) -> Any:
    cosine = np.array([[u @ v / np.sqrt((u @ u) * (v @ v)) for v in x] for u in x])
    return np.array([row / row.sum() for row in (cosine + 1) / 2])


def test_equals_loops(scene: Any) -> None:
    s, t = (neighbours(out.embedding.double().numpy()) for out in (scene.out_s, scene.out_t))
    cells = [t[i, j] * np.log((t[i, j] + 1e-7) / (s[i, j] + 1e-7)) for i in range(5) for j in range(5)]
    assert scene.value("pkt").value.item() == pytest.approx(sum(cells) / 25, rel=1e-5)


def test_equals_torchdistill(scene: Any) -> None:
    said = PKTLoss("fc", "input", "fc", "input", eps=1e-7)
    outs = (scene.convert(out, torch.Tensor.double) for out in (scene.out_s, scene.out_t))
    expected = said(*({"fc": {"input": out.embedding.clone()}} for out in outs))
    torch.testing.assert_close(scene.value("pkt").value, expected.float(), rtol=1e-5, atol=0)


def test_opposite_and_empty_embeddings_are_survived(scene: Any) -> None:
    embedding = scene.out_s.embedding.clone()
    embedding[0], embedding[1] = -3 * embedding[2], 0
    scene.out_s = scene.out_s._replace(embedding=embedding.requires_grad_())
    value = scene.value("pkt").value
    value.backward()
    assert value.isfinite()
    assert embedding.grad.abs().max() < 100


def test_a_teacher_is_needed(scene: Any) -> None:
    with pytest.raises(OtkdError, match="pkt compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))
