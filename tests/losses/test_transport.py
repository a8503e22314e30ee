"""The transport term against scipy's assignment solver (equal weights: the optimal plan is a permutation) and POT."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

from otkd.core.errors import ConfigError, OtkdError
from otkd.core.plugins import configure
from otkd.losses.base import Probe
from otkd.losses.transport import Config, Loss

STATISTICS: dict[str, Any] = {"mean": np.mean, "max": np.max, "median": np.median, "none": lambda cost: 1.0}


def level(scene: Any) -> tuple[Any, Any]:
    """Give both embeddings one width; returns them as numpy arrays."""
    scene.out_t = scene.out_t._replace(embedding=scene.out_t.embedding[:, :13])
    return scene.out_s.embedding.double().numpy(), scene.out_t.embedding.double().numpy()


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("normalize", sorted(STATISTICS))
def test_exact_equals_the_assignment(scene: Any, cost: str, normalize: str) -> None:
    table = cdist(*level(scene), cost)
    table /= STATISTICS[normalize](table)
    rows, columns = linear_sum_assignment(table)
    result = scene.value("transport", {"solver": "exact", "cost": cost, "normalize": normalize})
    assert result.value.item() == pytest.approx(table[rows, columns].mean(), rel=1e-5)
    assert result.parts["alignment"].item() == pytest.approx((columns == np.arange(5)).mean(), abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_equals_pot(scene: Any, epsilon: float) -> None:
    table = cdist(*level(scene), "sqeuclidean")
    table /= table.mean()
    weights = np.full(5, 0.2)
    plan = pot.sinkhorn(weights, weights, table, epsilon, method="sinkhorn_log", numItermax=10_000, stopThr=1e-10)
    solver = {"name": "sinkhorn", "epsilon": epsilon, "value": "primal", "tolerance": 1e-6}
    result = scene.value("transport", {"solver": solver})
    assert result.value.item() == pytest.approx((plan * table).sum(), rel=1e-4)
    assert result.parts["alignment"].item() == pytest.approx(np.trace(plan), abs=1e-4)
    assert result.parts["converged"] == 1
    assert result.parts["n_iters"] > 0


def test_giving_up_is_logged(scene: Any) -> None:
    parts = scene.value("transport", {"solver": {"name": "sinkhorn", "epsilon": 1e-3, "max_iters": 1}}).parts
    assert parts["converged"] == 0
    assert parts["marginal_error"] > 1e-4


def test_a_pair_of_equal_clouds_is_aligned_and_free(scene: Any) -> None:
    scene.out_t = scene.out_s
    result = scene.value("transport", {"solver": "exact"})
    assert result.value.item() == pytest.approx(0, abs=1e-5)
    assert result.parts["alignment"].item() == pytest.approx(1)


@pytest.mark.parametrize("layer", ["embedding", "logits", 0, 1, 2, "stage3"])
def test_every_layer_can_be_taken(scene: Any, layer: int | str) -> None:
    loss = scene.loss("transport", {"layer": layer})
    assert loss(scene.out_s, scene.out_t, scene.batch).value.isfinite()
    kinds = {"embedding": nn.Sequential, "logits": nn.Identity}
    assert isinstance(loss.projection, kinds.get(str(layer), nn.Conv2d))


def test_maps_are_pooled_projected_and_flattened(scene: Any) -> None:
    loss = scene.loss("transport", {"layer": 3, "solver": "exact", "normalize": "none"})
    pooled = nn.functional.adaptive_avg_pool2d(scene.out_s.features[3], (3, 2))
    mapped = torch.einsum("bchw,oc->bohw", pooled, loss.projection.weight[:, :, 0, 0])
    mapped = mapped + loss.projection.bias[:, None, None]
    table = cdist(mapped.flatten(1).detach().numpy(), scene.out_t.features[3].flatten(1).numpy(), "sqeuclidean")
    rows, columns = linear_sum_assignment(table)
    value = loss(scene.out_s, scene.out_t, scene.batch).value.item()
    assert value == pytest.approx(table[rows, columns].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "projection", "shape"),
    [("embedding", "linear", (17, 13)), (1, "conv", (6, 4, 1, 1)), (3, "linear", (66, 36)), (3, "auto", (11, 6, 1, 1))],
)
def test_projection_shapes(scene: Any, layer: int | str, projection: str, shape: tuple[int, ...]) -> None:
    """Stage 3 is pooled to 3 × 2 first: 6 · 3 · 2 = 36 and 11 · 3 · 2 = 66 numbers an image."""
    weights = [
        p for p in scene.loss("transport", {"layer": layer, "projection": projection}).parameters() if p.dim() > 1
    ]
    assert [tuple(weight.shape) for weight in weights] == [shape]


def test_equal_widths_need_no_projection(scene: Any) -> None:
    level(scene)
    assert not list(scene.loss("transport").parameters())
    assert list(scene.loss("transport", {"projection": "linear"}).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"projection": "none"}, "13.*17.*use auto"), ({"projection": "conv"}, "embedding is a vector")],
)
def test_a_projection_that_does_not_fit_is_a_problem(
    scene: Any, cards: Any, options: dict[str, Any], message: str
) -> None:
    (problem,) = configure("losses", "transport", options).check(*cards)
    assert problem.path == "projection"
    with pytest.raises(OtkdError, match=message):
        Loss(Config.model_validate(options), Probe(scene.out_s, scene.out_t, 7))


def test_a_missing_layer_is_a_problem(cards: Any) -> None:
    problems = list(configure("losses", "transport", {"layer": "stage9"}).check(*cards))
    assert [problem.path for problem in problems] == ["layer", "layer"]


def test_solvers_are_chosen_by_name_with_their_options() -> None:
    assert configure("losses", "transport", {}).model_dump()["solver"]["epsilon"] == 0.05
    assert configure("losses", "transport", {"solver": "exact"}).solver.name == "exact"
    with pytest.raises(ConfigError, match=r"solver\.epsilom: unknown key.*Did you mean 'epsilon'"):
        configure("losses", "transport", {"solver": {"name": "sinkhorn", "epsilom": 1}})
    with pytest.raises(ConfigError, match=r"no solver 'sinkhron'.*Did you mean 'sinkhorn'"):
        configure("losses", "transport", {"solver": "sinkhron"})
