"""The transport term against scipy's assignment solver (equal weights: the optimal plan is a permutation) and POT."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

from otkd.core import plugins
from otkd.core.errors import ConfigError, OtkdError
from otkd.core.plugins import configure
from otkd.losses import transport
from otkd.losses.base import Probe
from otkd.losses.transport import Config, Loss
from otkd.ot.result import TransportResult

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
    assert isinstance(loss.projections[0], kinds.get(str(layer), nn.Conv2d))


def test_maps_are_pooled_projected_and_flattened(scene: Any) -> None:
    loss = scene.loss("transport", {"layer": 3, "solver": "exact", "normalize": "none"})
    pooled = nn.functional.adaptive_avg_pool2d(scene.out_s.features[3], (3, 2))
    mapped = torch.einsum("bchw,oc->bohw", pooled, loss.projections[0].weight[:, :, 0, 0])
    mapped = mapped + loss.projections[0].bias[:, None, None]
    table = cdist(mapped.flatten(1).detach().numpy(), scene.out_t.features[3].flatten(1).numpy(), "sqeuclidean")
    rows, columns = linear_sum_assignment(table)
    value = loss(scene.out_s, scene.out_t, scene.batch).value.item()
    assert value == pytest.approx(table[rows, columns].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "projection", "shape"),
    [
        ("embedding", "linear", (17, 13)),
        (1, "conv", (6, 4, 1, 1)),
        (3, "linear", (102, 36)),
        (3, "auto", (17, 6, 1, 1)),
    ],
)
def test_projection_shapes(scene: Any, layer: int | str, projection: str, shape: tuple[int, ...]) -> None:
    """Stage 3 is pooled to 3 × 2 first: 6 · 3 · 2 = 36 and 17 · 3 · 2 = 102 numbers an image."""
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


def pooled(feature: torch.Tensor, side: int) -> np.ndarray:
    """Maps of at most `side` × `side` cells as (B, C, cells)."""
    height, width = (min(size, side) for size in feature.shape[-2:])
    return nn.functional.adaptive_avg_pool2d(feature, (height, width)).flatten(2).double().numpy()


def cheapest(table: np.ndarray) -> float:
    """The optimal transport cost with equal weights, after division by the mean cost. Truth: POT's linear program."""
    table = table / table.mean()
    rows, columns = (np.full(count, 1 / count) for count in table.shape)
    return float(pot.emd2(rows, columns, table))


def test_channels_of_each_image_are_points_whatever_their_number(scene: Any) -> None:
    """Stage 2: 5 channels of 7 × 6 against 9 of 5 × 6."""
    loss = scene.loss("transport", {"points": "channel", "layer": 2, "solver": "exact"})
    assert not list(loss.parameters())
    maps_s = nn.functional.adaptive_avg_pool2d(scene.out_s.features[2], (5, 6)).flatten(2).numpy()
    maps_t = scene.out_t.features[2].flatten(2).numpy()
    truth = np.mean([cheapest(cdist(s, t, "sqeuclidean")) for s, t in zip(maps_s, maps_t, strict=True)])
    result = loss(scene.out_s, scene.out_t, scene.batch)
    assert result.value.item() == pytest.approx(truth, rel=1e-5)
    assert "alignment" not in result.parts


def test_cells_of_each_image_are_points(scene: Any) -> None:
    """Stage 1 with 4 and 6 channels; 3 cells a side at most."""
    loss = scene.loss("transport", {"points": "spatial", "layer": 1, "solver": "exact", "side": 3})
    (weight, bias) = (parameter.detach().double().numpy() for parameter in loss.parameters())
    cells_s = np.einsum("bcp,dc->bpd", pooled(scene.out_s.features[1], 3), weight[:, :, 0, 0]) + bias
    cells_t = pooled(scene.out_t.features[1], 3).transpose(0, 2, 1)
    assert cells_s.shape == cells_t.shape == (5, 9, 6)
    truth = np.mean([cheapest(cdist(s, t, "sqeuclidean")) for s, t in zip(cells_s, cells_t, strict=True)])
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == pytest.approx(truth, rel=1e-5)


def test_cells_of_all_images_are_points_and_alignment_counts_images(scene: Any) -> None:
    """Stage 3: 3 × 4 cells in the student, 3 × 2 in the teacher, which keep their numbers."""
    loss = scene.loss("transport", {"points": "batch-spatial", "layer": 3, "solver": "exact"})
    (weight, bias) = (parameter.detach().double().numpy() for parameter in loss.parameters())
    cells_s = np.einsum("bcp,dc->bpd", pooled(scene.out_s.features[3], 4), weight[:, :, 0, 0]) + bias
    cells_t = pooled(scene.out_t.features[3], 4).transpose(0, 2, 1)
    table = cdist(cells_s.reshape(60, -1), cells_t.reshape(30, -1), "sqeuclidean")
    plan = pot.emd(np.full(60, 1 / 60), np.full(30, 1 / 30), table / table.mean())
    result = loss(scene.out_s, scene.out_t, scene.batch)
    assert result.value.item() == pytest.approx((plan * table / table.mean()).sum(), rel=1e-5)
    same_image = sum(plan[12 * i : 12 * i + 12, 6 * i : 6 * i + 6].sum() for i in range(5))
    assert result.parts["alignment"].item() == pytest.approx(same_image, abs=1e-6)
    assert result.parts["plan_entropy"].item() == pytest.approx(
        -(plan[plan > 0] * np.log(plan[plan > 0])).sum(), rel=1e-5
    )


def test_several_layers_are_added_up_with_their_weights(scene: Any) -> None:
    layers = ["logits", {"layer": "stage2", "weight": 0.25}]
    loss = scene.loss("transport", {"points": "batch", "layer": layers})
    result = loss(scene.out_s, scene.out_t, scene.batch)
    logits = scene.value("transport", {"layer": "logits"})
    alone = scene.loss("transport", {"layer": "stage2"})
    alone.projections.load_state_dict(
        {key.replace("1.", "0.", 1): value for key, value in loss.projections.state_dict().items()}
    )
    stage = alone(scene.out_s, scene.out_t, scene.batch)
    torch.testing.assert_close(result.value, logits.value + 0.25 * stage.value)
    torch.testing.assert_close(result.parts["stage2/alignment"], stage.parts["alignment"])
    assert result.parts.keys() == {f"{layer}/{part}" for layer in ("logits", "stage2") for part in stage.parts}


@pytest.mark.parametrize(
    ("options", "path", "message"),
    [
        ({"points": "spatial"}, "points", "embedding is a vector; allowed there: batch"),
        ({"points": "channel", "layer": "logits"}, "points", "logits is a vector"),
        ({"points": "spatial", "layer": 1, "projection": "linear"}, "projection", "use conv"),
        ({"points": "spatial", "layer": 1, "projection": "none"}, "projection", "4 wide.*6; use auto"),
        ({"warm_start": True}, "warm_start", "points: channel"),
        ({"points": "channel", "layer": 1, "solver": "exact", "warm_start": True}, "warm_start", "solver: .*sinkhorn"),
        ({"layer": [1, "stage2", 1]}, "layer", "1 is listed twice; give it once, with a weight"),
        ({"layer": [1, "logits", {"layer": "stage1", "weight": 2}]}, "layer", "stage1 is listed twice, also as 1"),
        ({"layer": [1, "stage9"]}, "layer", "no layer 'stage9'"),
    ],
)
def test_what_does_not_go_together_is_a_problem(cards: Any, options: dict[str, Any], path: str, message: str) -> None:
    problems = list(configure("losses", "transport", options).check(*cards))
    assert problems
    for problem in problems:
        assert problem.path == path
        assert re.search(message, problem.message)


@pytest.mark.parametrize("layer", [[], 2.5, None, [1, 2.5]])
def test_what_is_no_layer_is_refused_with_one_message(layer: Any) -> None:
    with pytest.raises(ConfigError, match="a layer is an index, a name, or a list") as caught:
        configure("losses", "transport", {"layer": layer})
    assert [problem.path for problem in caught.value.problems] == ["layer"]


def test_the_kept_plan_is_ordered_by_class(scene: Any) -> None:
    level(scene)
    loss = scene.loss("transport", {"solver": "exact"})
    (snapshot,) = loss.snapshot(scene.out_s, scene.out_t, scene.batch).values()
    order = scene.batch.target.argsort(stable=True)
    assert snapshot.classes_N.tolist() == sorted(scene.batch.target.tolist())
    table = cdist(scene.out_s.embedding.numpy(), scene.out_t.embedding.numpy(), "sqeuclidean")
    rows, columns = linear_sum_assignment(table[order][:, order])
    np.testing.assert_allclose(snapshot.matrix_NM[rows, columns], 0.2, rtol=1e-6)


@pytest.mark.parametrize(("points", "shape"), [("spatial", (12, 6)), ("channel", (6, 17)), ("batch-spatial", (5, 5))])
def test_plans_of_many_problems_are_kept_as_one_matrix(scene: Any, points: str, shape: tuple[int, int]) -> None:
    loss = scene.loss("transport", {"points": points, "layer": 3})
    (snapshot,) = loss.snapshot(scene.out_s, scene.out_t, scene.batch).values()
    assert snapshot.matrix_NM.shape == shape
    assert snapshot.matrix_NM.sum().item() == pytest.approx(1, abs=1e-3)
    assert (snapshot.classes_N is None) == (points != "batch-spatial")


def test_the_way_out_of_a_warm_start_names_every_solver_that_takes_one(cards: Any) -> None:
    (problem,) = configure("losses", "transport", {"warm_start": True}).check(*cards)
    named = problem.message.split("solver: ")[1].rstrip(".").split(", ")
    assert named == [name for name in plugins.names("ot") if plugins.load("ot", name).Config.warm]
    assert "sinkhorn" in named


@pytest.mark.parametrize("points", ["channel", "spatial"])
def test_a_large_plan_is_kept_as_sums_of_neighbours(scene: Any, points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 cells against 6, 6 channels against 17: at most 5 are kept, of 3 against 2, of 2 against 4 each."""
    loss = scene.loss("transport", {"points": points, "layer": 3, "solver": "exact"})
    (whole,) = loss.snapshot(scene.out_s, scene.out_t, scene.batch).values()
    monkeypatch.setattr(transport, "PICTURE", 5)
    (kept,) = loss.snapshot(scene.out_s, scene.out_t, scene.batch).values()
    rows, columns = (3, 2) if points == "spatial" else (2, 4)
    height, width = -(-len(whole.matrix_NM) // rows), -(-whole.matrix_NM.shape[1] // columns)
    assert kept.matrix_NM.shape == (height, width)
    for i in range(height):
        for j in range(width):
            block = whole.matrix_NM[rows * i : rows * (i + 1), columns * j : columns * (j + 1)]
            torch.testing.assert_close(kept.matrix_NM[i, j], block.sum())
    assert kept.about == f"{whole.about}, {' × '.join(map(str, whole.matrix_NM.shape))}, neighbours summed"


@pytest.mark.parametrize("points", ["batch", "spatial"])
def test_a_plan_that_moves_nothing_has_finite_parts(scene: Any, points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an unbalanced solver's is whose whole mass is given up."""

    def give_up(clouds: Any, a: Any, b: Any, config: Any, start: Any) -> TransportResult:
        plan = torch.zeros_like(clouds.cross)
        value = 0 * clouds.cross.sum((-2, -1))
        return TransportResult(value, plan, None, 1, value.detach(), value.detach() == 0)

    monkeypatch.setattr(transport, "transport", give_up)
    parts = scene.value("transport", {"points": points, "layer": 3}).parts
    assert all(part.isfinite() for part in parts.values())
    assert parts["plan_entropy"] == 0


def test_solvers_across_widths_need_no_projection(scene: Any) -> None:
    loss = scene.loss("transport", {"solver": "gromov"})
    assert not list(loss.parameters())
    assert loss(scene.out_s, scene.out_t, scene.batch).value.isfinite()


def test_a_warm_start_gives_the_same_plan_and_survives_a_checkpoint(scene: Any) -> None:
    scene.out_s, scene.out_t = (
        scene.convert(out, lambda t: t[:1].expand(5, *t.shape[1:])) for out in (scene.out_s, scene.out_t)
    )
    options = {"points": "channel", "layer": 3, "solver": {"name": "sinkhorn", "tolerance": 1e-6}}
    cold = scene.value("transport", options)
    loss = scene.loss("transport", options | {"warm_start": True})
    loss(scene.out_s, scene.out_t, scene.batch)
    again = scene.loss("transport", options | {"warm_start": True})
    again.load_state_dict(loss.state_dict())
    warm = again(scene.out_s, scene.out_t, scene.batch)
    torch.testing.assert_close(warm.value, cold.value, rtol=1e-4, atol=1e-5)
    assert warm.parts["n_iters"] < cold.parts["n_iters"]
    torch.testing.assert_close(warm.value, loss(scene.out_s, scene.out_t, scene.batch).value, rtol=0, atol=0)


def test_what_is_drawn_at_random_follows_the_step(scene: Any) -> None:
    """Every training step draws anew; the same step of a resumed trial draws the same."""
    loss = scene.loss("transport", {"solver": {"name": "sliced", "projections": 3}})
    state = loss.state_dict()
    values = [loss(scene.out_s, scene.out_t, scene.batch).value.item() for _ in range(2)]
    loss.load_state_dict(state)
    assert values[0] != values[1]
    assert [loss(scene.out_s, scene.out_t, scene.batch).value.item() for _ in range(2)] == values
