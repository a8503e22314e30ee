"""WCoRD: the bound against the exact distance between joint and product by POT, the cost against an assignment."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from otkd.losses.base import Probe
from otkd.losses.wcord import Config, Critic, Loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(scene: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The term in eval mode, so that the power iteration rests, and both outputs, in double precision."""
    out_s, out_t = (scene.convert(out, torch.Tensor.double) for out in (scene.out_s, scene.out_t))
    return scene.loss("wcord", options).double().eval(), out_s, out_t


def critic(width_s: int, width_t: int, width: int) -> Critic:
    torch.manual_seed(0)
    made = Critic(width_s, width_t, width).double()
    for _ in range(200):
        made(draw(1, width_s), draw(1, width_t))  # each call is a step of the power iteration
    return made.eval()


def scores(loss: Any, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Pair by pair, from the weights."""
    w_s, w_t = (layer.weight.detach().numpy() for layer in (loss.embed_s, loss.embed_t))
    table = np.zeros((len(s), len(t)))
    for i, j in product(range(len(s)), range(len(t))):
        u, v = w_s @ s[i], w_t @ t[j]
        table[i, j] = (u / max(1, np.linalg.norm(u))) @ (v / max(1, np.linalg.norm(v))) / np.sqrt(2)
    return table


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_dual_equals_the_definition(scene: Any, scale: float) -> None:
    """Embeddings inside the ball and beyond it."""
    loss, out_s, out_t = double(scene, {"form": "dual", "width": 19, "global_weight": 3.0})
    out_s, out_t = (out._replace(embedding=scale * out.embedding) for out in (out_s, out_t))
    table = scores(loss.critic, out_s.embedding.numpy(), out_t.embedding.numpy())
    expected = np.mean([table[i, i] for i in range(5)]) - np.mean([table[i, j] for i in range(5) for j in range(5)])
    result = loss(out_s, out_t, scene.batch)
    assert result.value.item() == pytest.approx(-3 * expected, rel=1e-10)
    assert result.parts["dual"].item() == pytest.approx(expected, rel=1e-10)
    assert set(result.parts) == {"dual"}


def test_the_bound_stays_below_the_distance(scene: Any) -> None:
    """W₁ between the joint and the product distribution of one batch, also when the critic is trained for it."""
    s, t = 0.5 * draw(6, 4), 0.5 * draw(6, 3, seed=1)
    pairs = torch.stack([torch.cat([s[i], t[j]]) for i, j in product(range(6), range(6))]).numpy()
    joint = pairs[[7 * i for i in range(6)]]
    distance = pot.emd2(np.full(6, 1 / 6), np.full(36, 1 / 36), cdist(joint, pairs))
    made = critic(4, 3, 8).train()
    optimizer = torch.optim.Adam(made.parameters(), 0.01)
    bounds = []
    for _ in range(300):
        bounds.append(Loss._bound(made(s, t)))
        optimizer.zero_grad()
        (-bounds[-1]).backward()
        optimizer.step()
    assert max(bounds).item() <= distance
    assert bounds[-1] > 2 * bounds[0].abs()


def test_the_critic_is_1_lipschitz() -> None:
    made = critic(5, 7, 11)
    for scale in (0.1, 1.0, 10.0):
        s, t = scale * draw(40, 5), scale * draw(40, 7, seed=1)
        score = made(s, t).flatten()
        pairs = torch.stack([torch.cat([x, y]) for x, y in product(s, t)])
        change, distance = (score[:, None] - score).abs(), torch.cdist(pairs, pairs)
        assert (change <= distance * (1 + 1e-6) + 1e-6).all()
    assert torch.linalg.matrix_norm(made.embed_s.weight, 2).item() == pytest.approx(1, abs=1e-6)


def test_primal_equals_the_assignment(scene: Any) -> None:
    loss, out_s, out_t = double(scene, {"form": "primal", "solver": "exact", "local_weight": 2.0})
    mapped = loss.projection(out_s.embedding).detach().numpy()
    table = cdist(mapped, out_t.embedding.numpy(), "cosine")
    rows, columns = linear_sum_assignment(table)
    result = loss(out_s, out_t, scene.batch)
    assert result.value.item() == pytest.approx(2 * table[rows, columns].mean(), rel=1e-9)
    assert result.parts["converged"] == 1


def test_both_is_the_sum(scene: Any) -> None:
    result = scene.value("wcord")
    assert result.value.item() == pytest.approx(
        -0.8 * result.parts["dual"].item() + 0.05 * result.parts["primal"].item()
    )


def test_equal_widths_need_no_map(scene: Any) -> None:
    scene.out_t = scene.out_s
    loss = scene.loss("wcord", {"form": "primal", "solver": "exact"})
    assert not list(loss.parameters())
    assert loss(scene.out_s, scene.out_s, scene.batch).value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_gradient_equals_finite_differences(scene: Any, form: str) -> None:
    loss, out_s, out_t = double(scene, {"form": form, "solver": "exact", "width": 9})

    def value(embedding: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = loss(out_s._replace(embedding=embedding), out_t, scene.batch).value
        return result

    assert torch.autograd.gradcheck(value, (out_s.embedding.clone().requires_grad_(),))


def test_one_image_has_no_contrast(scene: Any) -> None:
    out_s, out_t = (scene.convert(out, lambda tensor: tensor[:1]) for out in (scene.out_s, scene.out_t))
    assert scene.loss("wcord", {"form": "dual"})(out_s, out_t, scene.batch).value == 0


def test_what_is_drawn_at_random_follows_the_step(scene: Any) -> None:
    """Every training step draws anew; the same step of a resumed trial draws the same, and evaluation none."""
    loss = scene.loss("wcord", {"form": "primal", "solver": {"name": "sliced", "projections": 3}})
    state = loss.state_dict()

    def value() -> Any:
        return loss(scene.out_s, scene.out_t, scene.batch).value.item()

    values = [value() for _ in range(3)]
    assert len(set(values)) == 3
    loss.load_state_dict(state)
    assert [value() for _ in range(3)] == values
    loss.eval()
    assert value() == value()


def test_a_checkpoint_holds_the_power_iteration(scene: Any) -> None:
    loss, fresh = scene.loss("wcord"), Loss(Config(), Probe(scene.out_s, scene.out_t, 7))
    loss(scene.out_s, scene.out_t, scene.batch)
    fresh.load_state_dict(loss.state_dict())
    values = [part(scene.out_s, scene.out_t, scene.batch).value for part in (loss, fresh)]
    assert values[0] == values[1]
