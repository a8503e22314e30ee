"""SP against plain loops, and against torchdistill with the rows' norm put right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchdistill.losses.mid_level import SPKDLoss

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.similarity import Config, Loss


def normalised_gram(x: torch.Tensor) -> Any:
    rows = [row.double().numpy().ravel() for row in x]
    gram = np.array([[sum(a * b for a, b in zip(u, v, strict=True)) for v in rows] for u in rows])
    return np.array([row / np.sqrt((row**2).sum()) for row in gram])


@pytest.mark.parametrize("layer", [None, 1, "stage2", "embedding"])
def test_equals_loops(scene: Any, layer: Any) -> None:
    s, t = (normalised_gram(out.layer("stage3" if layer is None else layer)) for out in (scene.out_s, scene.out_t))
    expected = sum((t[i, j] - s[i, j]) ** 2 for i in range(5) for j in range(5)) / 25
    assert scene.value("similarity", {"layer": layer}).value.item() == pytest.approx(expected, rel=1e-5)


def test_equals_torchdistill_with_euclidean_rows(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes 1 as the norm's order in place of the dimension; order 2 is what the article has."""
    monkeypatch.setattr("torchdistill.losses.mid_level.normalize", lambda x, dim: F.normalize(x, 2.0, dim))
    maps_s, maps_t = ({"last": {"output": out.stages[-1]}} for out in (scene.out_s, scene.out_t))
    expected = SPKDLoss("last", "last", "batchmean")(maps_s, maps_t)
    torch.testing.assert_close(scene.value("similarity").value, expected)


def test_other_scales_and_widths_do_not_matter(scene: Any) -> None:
    doubled = scene.out_t._replace(features=tuple(3 * torch.cat([f, f], 1) for f in scene.out_t.features))
    scene.out_s, scene.out_t = scene.out_t, doubled
    assert scene.value("similarity").value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("images", [1, 5])
def test_empty_maps_are_survived_and_not_blown_up(scene: Any, images: int) -> None:
    last = scene.out_s.stages[-1].clone()
    last[:images] = 0
    scene.out_s = scene.out_s._replace(features=(*scene.out_s.features[:-1], last.requires_grad_()))
    value = scene.value("similarity").value
    value.backward()
    assert value.isfinite()
    assert last.grad.abs().max() < 1


def test_a_teacher_is_needed(scene: Any) -> None:
    with pytest.raises(OtkdError, match="similarity compares with a teacher"):
        Loss(Config(), Probe(scene.out_s, None, 7))


def test_the_layer_is_checked(cards: Any) -> None:
    assert [problem.path for problem in Config(layer=9).check(*cards)] == ["layer", "layer"]
