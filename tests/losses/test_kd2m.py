"""KD²M's distances from their definitions, and against POT and scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

from otkd.core import plugins
from otkd.core.errors import OtkdError
from otkd.core.output import ModelOutput
from otkd.losses.base import Probe
from otkd.losses.kd2m import Config, Loss
from otkd.ot.clouds import Clouds, transport

EVERY = ("w2", "joint", "mmd_linear", "mmd_rbf", "kl_gaussian", "gaussian", "gromov")
TARGET = torch.tensor([0, 3, 0, 3, 5, 0, 3, 0, 0, 3, 6])
BATCH = 11


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(width_s: int = 6, width_t: int = 6) -> tuple[ModelOutput, ModelOutput]:
    student = ModelOutput(draw(BATCH, 7), draw(BATCH, width_s, seed=1), (), (), ())
    return student, ModelOutput(draw(BATCH, 7, seed=2), 2 * draw(BATCH, width_t, seed=3) + 0.5, (), (), ())


def term(options: dict[str, Any], out_s: ModelOutput, out_t: ModelOutput) -> Loss:
    torch.manual_seed(0)
    return Loss(Config.model_validate(options), Probe(out_s, out_t, 7)).double()


def value(scene: Any, options: dict[str, Any], out_s: ModelOutput, out_t: ModelOutput) -> Any:
    return term(options, out_s, out_t)(out_s, out_t, scene.batch._replace(target=TARGET))


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cdist(x, y, "sqeuclidean")


def assigned(table: np.ndarray) -> float:
    rows, columns = linear_sum_assignment(table)
    return float(table[rows, columns].mean())


def w2(x: np.ndarray, y: np.ndarray, z_s: np.ndarray, z_t: np.ndarray) -> float:
    return assigned(squared(x, y))


def joint(x: np.ndarray, y: np.ndarray, z_s: np.ndarray, z_t: np.ndarray) -> float:
    return assigned(squared(x, y) / squared(x, y).max() + squared(z_s, z_t))


def gaussian(x: np.ndarray, y: np.ndarray, z_s: np.ndarray, z_t: np.ndarray) -> float:
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + ((x.std(0) - y.std(0)) ** 2).sum())


def gromov(x: np.ndarray, y: np.ndarray, z_s: np.ndarray, z_t: np.ndarray) -> float:
    """The objective by its definition at the plan that `otkd.ot.gromov` finds, no worse an optimum than POT's."""
    solver = plugins.configure("ot", "gromov", {})
    clouds = Clouds(torch.from_numpy(x), torch.from_numpy(y), "euclidean", "none")
    plan = transport(clouds, None, None, solver).plan_BNM.numpy()
    gaps = (cdist(x, x)[:, None, :, None] - cdist(y, y)[None, :, None, :]) ** 2
    objective = np.einsum("ijkl,ij,kl->", gaps, plan, plan)
    theirs = pot.gromov.gromov_wasserstein2(cdist(x, x), cdist(y, y), loss_fun="square_loss")
    assert objective <= theirs + 1e-9
    return float(objective)


def mmd(kernel: Any, x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for left, right, factor in ((x, x, 1), (y, y, 1), (x, y, -2)):
        total += factor * sum(kernel(p, q) for p in left for q in right) / (len(left) * len(right))
    return total


def mmd_linear(x: np.ndarray, y: np.ndarray, z_s: np.ndarray, z_t: np.ndarray) -> float:
    return mmd(lambda p, q: p @ q, x, y)


def mmd_rbf(x: np.ndarray, y: np.ndarray, z_s: np.ndarray, z_t: np.ndarray) -> float:
    distances = [math.dist(p, q) for left, right in ((x, x), (y, y), (x, y)) for p in left for q in right]
    s = sum(distances) / len(distances)
    return mmd(lambda p, q: math.exp(-((p - q) @ (p - q)) / (2 * s**2)), x, y)


def kl_gaussian(x: np.ndarray, y: np.ndarray, z_s: np.ndarray, z_t: np.ndarray) -> float:
    total = 0.0
    for p, q in zip(x.T, y.T, strict=True):
        p, q = (
            torch.distributions.Normal(*torch.from_numpy(np.array([part.mean(), (part.var() + 1e-5) ** 0.5])))
            for part in (p, q)
        )
        total += torch.distributions.kl_divergence(p, q).item()
    return total


ORACLES = {function.__name__: function for function in (w2, joint, gaussian, gromov, mmd_linear, mmd_rbf, kl_gaussian)}


def arrays(*outs: ModelOutput) -> list[np.ndarray]:
    return [out.embedding.numpy() for out in outs] + [out.logits.numpy() for out in outs]


@pytest.mark.parametrize("match", EVERY)
def test_equals_the_definition(scene: Any, match: str) -> None:
    out_s, out_t = outputs()
    result = value(scene, {"match": match}, out_s, out_t)
    assert result.value.item() == pytest.approx(ORACLES[match](*arrays(out_s, out_t)), rel=1e-8)


@pytest.mark.parametrize("match", EVERY)
def test_by_class_is_the_mean_over_the_classes_present(scene: Any, match: str) -> None:
    """Of five, four, one and one image; a single image has no divergence of spreads."""
    out_s, out_t = outputs()
    expected = []
    for label in sorted(set(TARGET.tolist())):
        rows = TARGET.numpy() == label
        if match != "kl_gaussian" or rows.sum() > 1:
            expected.append(ORACLES[match](*(part[rows] for part in arrays(out_s, out_t))))
    result = value(scene, {"match": match, "by_class": True}, out_s, out_t)
    assert len(expected) == (2 if match == "kl_gaussian" else 4)
    assert result.value.item() == pytest.approx(np.mean(expected), rel=1e-8)


@pytest.mark.parametrize(("by_class", "images"), [(True, BATCH), (True, 1), (False, 1)])
def test_no_two_images_are_no_divergence(scene: Any, by_class: bool, images: int) -> None:
    """No class of two images, or no second image in the batch."""
    out_s, out_t = (scene.convert(out, lambda part: part[:images]) for out in outputs())
    grown = out_s._replace(embedding=out_s.embedding.clone().requires_grad_())
    loss = term({"match": "kl_gaussian", "by_class": by_class}, out_s, out_t)
    got = loss(grown, out_t, scene.batch._replace(target=torch.arange(images))).value
    got.backward()
    assert got == 0
    assert (grown.embedding.grad == 0).all()


@pytest.mark.parametrize("factor", [0.0, 0.01, 100.0])
def test_labels_weigh_in_the_joint_cost(scene: Any, factor: float) -> None:
    out_s, out_t = outputs()
    x, y, z_s, z_t = arrays(out_s, out_t)
    expected = assigned(squared(x, y) / squared(x, y).max() + factor * squared(z_s, z_t))
    assert value(scene, {"match": "joint", "labels": factor}, out_s, out_t).value.item() == pytest.approx(expected)


def test_the_joint_cost_sees_the_teachers_features(scene: Any) -> None:
    """What the release's does not."""
    out_s, out_t = outputs()
    moved = out_t._replace(embedding=out_t.embedding.flip(0))
    values = [value(scene, {"match": "joint"}, out_s, out).value for out in (out_t, moved)]
    assert values[0] != values[1]


@pytest.mark.parametrize("match", [name for name in EVERY if name not in ("joint", "mmd_rbf")])
@pytest.mark.parametrize("by_class", [False, True])
def test_gradient_equals_finite_differences(scene: Any, match: str, by_class: bool) -> None:
    out_s, out_t = outputs()
    loss, batch = term({"match": match, "by_class": by_class}, out_s, out_t), scene.batch._replace(target=TARGET)

    def at(embedding: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = loss(out_s._replace(embedding=embedding), out_t, batch).value
        return result

    assert torch.autograd.gradcheck(at, (out_s.embedding.clone().requires_grad_(),))


def test_gradient_of_the_rbf_holds_the_bandwidth(scene: Any) -> None:
    out_s, out_t = outputs()
    x, y = out_s.embedding, out_t.embedding
    blocks = torch.cat([torch.cdist(*pair).flatten() for pair in ((x, x), (y, y), (x, y))])
    s, step = blocks.mean().item(), 1e-6

    def at_fixed_bandwidth(moved: torch.Tensor) -> float:
        return mmd(lambda p, q: math.exp(-((p - q) @ (p - q)) / (2 * s**2)), moved.numpy(), y.numpy())

    grown = x.clone().requires_grad_()
    value(scene, {"match": "mmd_rbf"}, out_s._replace(embedding=grown), out_t).value.backward()
    for i, j in ((0, 0), (4, 5), (10, 2)):
        bump = torch.zeros_like(x)
        bump[i, j] = step
        numeric = (at_fixed_bandwidth(x + bump) - at_fixed_bandwidth(x - bump)) / (2 * step)
        assert grown.grad[i, j].item() == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("match", EVERY)
@pytest.mark.parametrize("by_class", [False, True])
def test_equal_clouds_are_at_0_with_a_finite_gradient(scene: Any, match: str, by_class: bool) -> None:
    out_s, _ = outputs()
    grown = out_s._replace(embedding=out_s.embedding.clone().requires_grad_())
    got = term({"match": match, "by_class": by_class}, out_s, out_s)(
        grown, out_s, scene.batch._replace(target=TARGET)
    ).value
    got.backward()
    assert got.item() == pytest.approx(0, abs=1e-7)
    assert grown.embedding.grad.isfinite().all()


@pytest.mark.parametrize("match", EVERY)
def test_one_point_for_all_images(scene: Any, match: str) -> None:
    """A network that has collapsed: no distance, no spread."""
    out_s, out_t = outputs()
    embedding = torch.ones(BATCH, 6, dtype=torch.float64, requires_grad=True)
    got = value(scene, {"match": match}, out_s._replace(embedding=embedding), out_t).value
    got.backward()
    assert got.isfinite()
    assert embedding.grad.isfinite().all()


@pytest.mark.parametrize("match", EVERY)
def test_unequal_widths_get_a_map_where_they_need_one(scene: Any, match: str) -> None:
    out_s, out_t = outputs(6, 9)
    loss = term({"match": match}, out_s, out_t)
    assert isinstance(loss.projection, nn.Identity if match == "gromov" else nn.Linear)
    assert loss(out_s, out_t, scene.batch._replace(target=TARGET)).value.isfinite()
    assert isinstance(term({"match": match, "projection": "linear"}, out_s, out_t).projection, nn.Linear)
    if match != "gromov":
        with pytest.raises(OtkdError, match=r"kd2m.projection: none, but the student is 6 wide and the teacher 9"):
            term({"match": match, "projection": "none"}, out_s, out_t)


def test_impossible_widths_are_a_problem(cards: Any) -> None:
    student, teacher = cards
    assert [problem.path for problem in Config(projection="none").check(student, teacher)] == ["projection"]
    assert list(Config(projection="none").check(student, student)) == []
    assert list(Config(projection="none", match="gromov").check(student, teacher)) == []


def test_convergence_is_logged(scene: Any) -> None:
    assert value(scene, {"match": "w2", "by_class": True}, *outputs()).parts["converged"] == 1
    assert value(scene, {"match": "mmd_rbf"}, *outputs()).parts == {}
