"""RKD against plain loops over pairs and triples, and against torchdistill."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import RKDLoss

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.rkd import Config, Loss


def huber(x: float) -> float:
    return x**2 / 2 if abs(x) < 1 else abs(x) - 0.5


def distances(x: Any) -> Any:
    table = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
    return table / np.mean([table[i, j] for i, j in product(range(5), repeat=2) if i != j])


def angle(x: Any, i: int, j: int, k: int) -> float:
    u, v = x[j] - x[i], x[k] - x[i]
    return 0.0 if i in (j, k) else float(u @ v / np.sqrt((u @ u) * (v @ v)))


@pytest.mark.parametrize("layer", ["embedding", "stage2"])
def test_equals_loops(scene: Any, layer: str) -> None:
    s, t = (out.layer(layer).double().flatten(1).numpy() for out in (scene.out_s, scene.out_t))
    gap = distances(s) - distances(t)
    distance = sum(huber(gap[i, j]) for i, j in product(range(5), repeat=2)) / 25
    turn = sum(huber(angle(s, *ijk) - angle(t, *ijk)) for ijk in product(range(5), repeat=3)) / 125
    for a, b in [(25.0, 50.0), (2.0, 0.0)]:
        result = scene.value("rkd", {"layer": layer, "distance_weight": a, "angle_weight": b})
        assert result.value.item() == pytest.approx(a * distance + b * turn, rel=1e-5)
        assert result.parts["distance"].item() == pytest.approx(distance, rel=1e-5)
        assert result.parts["angle"].item() == pytest.approx(turn, rel=1e-5)


def test_equals_torchdistill(scene: Any) -> None:
    said = RKDLoss("x", "x", dist_factor=25, angle_factor=50, reduction="mean")
    expected = said({"x": {"output": scene.out_s.embedding}}, {"x": {"output": scene.out_t.embedding}})
    torch.testing.assert_close(scene.value("rkd").value, expected, rtol=1e-4, atol=0)


def test_turned_scaled_and_moved_embeddings_are_the_same(scene: Any) -> None:
    turn = torch.linalg.qr(torch.randn(17, 17, generator=torch.Generator().manual_seed(5))).Q
    scene.out_s = scene.out_t._replace(embedding=3 * scene.out_t.embedding @ turn + 1)
    assert scene.value("rkd").value.item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("same", [2, 5])
def test_images_with_one_embedding_are_survived(scene: Any, same: int) -> None:
    embedding = scene.out_s.embedding.clone()
    embedding[:same] = embedding[0].clone()
    scene.out_s = scene.out_s._replace(embedding=embedding.requires_grad_())
    value = scene.value("rkd").value
    value.backward()
    assert value.isfinite()
    assert embedding.grad.abs().max() < 100


def test_images_that_are_all_alike_are_one_unit_apart(scene: Any) -> None:
    """And 0 from themselves: the distance is cut off at 1e-6 before it is put in units of the mean."""
    scene.out_s = scene.out_s._replace(embedding=torch.ones(5, 13))
    gap = 1 - np.eye(5) - distances(scene.out_t.embedding.double().numpy())
    expected = np.mean([huber(x) for x in gap.ravel()])
    assert scene.value("rkd").parts["distance"].item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_is_needed(scene: Any) -> None:
    with pytest.raises(OtkdError, match="rkd compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))


def test_the_layer_is_checked(cards: Any) -> None:
    assert [problem.path for problem in Config(layer="stage9").check(*cards)] == ["layer", "layer"]
