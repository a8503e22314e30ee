"""WKD-L against the definition with the true class cut out, image by image, and against POT."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot as pot
import pytest
import torch

from otkd.core.errors import OtkdError
from otkd.core.output import Batch
from otkd.core.plugins import configure
from otkd.losses.base import Probe
from otkd.losses.wkd_logit import Config, Loss, transport_cost
from otkd.ot.cost import cka_cost, classifier_cosine, sharpened
from otkd.ot.sinkhorn import Config as SinkhornConfig
from otkd.ot.sinkhorn import solve

PARTS = {"target": 0.0, "transport": 1.0}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    powers = torch.exp(logits - logits.max())
    return powers / powers.sum()


def as_published(
    logits_s: torch.Tensor, logits_t: torch.Tensor, target: torch.Tensor, cost: torch.Tensor, config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and transport part, one image after the other, the true class' row and column deleted."""
    hits, moves = [], []
    for row_s, row_t, label in zip(logits_s, logits_t, target, strict=True):
        rest = [k for k in range(len(row_s)) if k != label]
        hits.append(-softmax(row_t)[label] * softmax(row_s)[label].log())
        a, b = (softmax(row[rest] / config.temperature) for row in (row_s, row_t))
        ground = cost[rest][:, rest]
        kernel = torch.exp(-ground / config.epsilon)
        u = torch.full_like(a, 1 / len(rest))
        for _ in range(config.iterations):
            v = b / (kernel.T @ u)
            u = a / (kernel @ v)
        moves.append((u[:, None] * kernel * v[None, :] * ground).sum())
    return torch.stack(hits).mean(), torch.stack(moves).mean()


def term(scene: Any, options: dict[str, Any], classifier: torch.Tensor | None = None) -> Loss:
    config = Config.model_validate(configure("losses", "wkd_logit", options).model_dump(mode="json"))
    return Loss(config, Probe(scene.out_s, scene.out_t, 7, classifier)).double()


def doubled(scene: Any) -> tuple[Any, Any]:
    return scene.convert(scene.out_s, torch.Tensor.double), scene.convert(scene.out_t, torch.Tensor.double)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 2.0, "sharpness": 2.0, "iterations": 3}, {"epsilon": 0.4, "target": 0.25, "transport": 3.0}],
)
def test_equals_the_definition(scene: Any, options: dict[str, Any]) -> None:
    loss = term(scene, options, draw(7, 5))
    (out_s, out_t), config = doubled(scene), loss.config
    ground = 1 - torch.exp(-config.sharpness * classifier_cosine(draw(7, 5)))
    target, transport = as_published(out_s.logits, out_t.logits, scene.batch.target, ground, config)
    result = loss(out_s, out_t, scene.batch)
    torch.testing.assert_close(result.value, config.target * target + config.transport * transport, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.parts["transport"], transport, rtol=1e-9, atol=0)


def test_gradient_equals_the_definition(scene: Any) -> None:
    loss = term(scene, {}, draw(7, 5))
    out_s, out_t = doubled(scene)
    grown = [out_s.logits.clone().requires_grad_() for _ in range(2)]
    loss(out_s._replace(logits=grown[0]), out_t, scene.batch).value.backward()
    target, transport = as_published(grown[1], out_t.logits, scene.batch.target, loss.cost_KK, loss.config)
    (target + 600 * transport).backward()
    torch.testing.assert_close(grown[0].grad, grown[1].grad, rtol=1e-8, atol=1e-10)


def test_gradient_equals_finite_differences(scene: Any) -> None:
    loss = term(scene, PARTS, draw(7, 5))
    out_s, out_t = doubled(scene)

    def value(logits: torch.Tensor) -> torch.Tensor:
        return loss(out_s._replace(logits=logits), out_t, scene.batch).value

    assert torch.autograd.gradcheck(value, (out_s.logits.clone().requires_grad_(),))


def test_many_iterations_are_pots_plan(scene: Any) -> None:
    loss = term(scene, PARTS | {"iterations": 5000, "epsilon": 0.1}, draw(7, 5))
    out_s, out_t = doubled(scene)
    expected = []
    for row_s, row_t, label in zip(out_s.logits, out_t.logits, scene.batch.target, strict=True):
        rest = [k for k in range(7) if k != label]
        a, b = (softmax(row[rest] / 8).numpy() for row in (row_s, row_t))
        ground = loss.cost_KK[rest][:, rest].numpy()
        expected.append((pot.sinkhorn(a / a.sum(), b / b.sum(), ground, 0.1, stopThr=1e-13) * ground).sum())
    result = loss(out_s, out_t, scene.batch)
    assert result.value.item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert result.parts["marginal_error"] < 1e-9


def test_envelope_is_the_derivative_of_the_entropic_value(scene: Any) -> None:
    """Against finite differences of `otkd.ot.sinkhorn`'s dual value in the student's probabilities."""
    ground = sharpened(classifier_cosine(draw(6, 5)), 1.0)
    config = Config(gradient="envelope", iterations=3000, epsilon=0.2)
    logits, b = draw(1, 6, seed=1), torch.softmax(draw(1, 6, seed=2), -1)
    grown = logits.clone().requires_grad_()
    value, _ = transport_cost(torch.softmax(grown, -1), b, ground, torch.ones(1, 6, dtype=torch.bool), config)
    value.sum().backward()

    def dual(row: torch.Tensor) -> float:
        solver = SinkhornConfig(epsilon=0.2, tolerance=1e-13, max_iters=20_000)
        return solve(ground[None], torch.softmax(row, -1), b, solver).value_B.item()

    steps = 1e-4 * torch.eye(6, dtype=torch.float64)
    numeric = [(dual(logits + step) - dual(logits - step)) / 2e-4 for step in steps]
    np.testing.assert_allclose(grown.grad[0].numpy(), numeric, rtol=1e-5, atol=1e-7)


def test_envelope_changes_the_gradient_alone(scene: Any) -> None:
    values, gradients = [], []
    for gradient in ("unrolled", "envelope"):
        logits = scene.out_s.logits.double().requires_grad_()
        loss = term(scene, PARTS | {"gradient": gradient}, draw(7, 5))
        result = loss(scene.out_s._replace(logits=logits), doubled(scene)[1], scene.batch)
        result.value.backward()
        values.append(result.value.detach())
        gradients.append(logits.grad)
    assert values[0] == values[1]
    assert not torch.allclose(*gradients, rtol=1e-2)
    assert torch.nn.functional.cosine_similarity(*(part.flatten() for part in gradients), 0) > 0.5


def batches(scene: Any, seed: int = 0) -> list[tuple[Batch, Any]]:
    """Three batches of the scene's teacher with other embeddings and labels; class 6 never comes, class 5 once."""
    made = []
    for step in range(3):
        label = torch.tensor([[0, 1, 2, 3, 4], [4, 0, 1, 2, 3], [0, 0, 1, 5, 3]])[step]
        out = scene.out_t._replace(embedding=draw(5, 17, seed=seed + step), logits=draw(5, 7, seed=seed + step))
        made.append((scene.batch._replace(target=label), out))
    return made


def prepared(loss: Loss, seen: list[tuple[Batch, Any]]) -> Loss:
    for batch, out in seen:
        loss.observe(batch, out)
    loss.prepare()
    return loss


def linear_cka(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    x, y = (np.stack(part) - np.mean(part, 0) for part in (left, right))
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@pytest.mark.parametrize("layer", ["embedding", "logits"])
def test_preparation_compares_the_training_images(scene: Any, layer: str) -> None:
    loss, rows = term(scene, {"layer": layer, "sharpness": 2.0}), {k: [] for k in range(7)}
    assert loss.needs_preparation
    prepared(loss, batches(scene))
    for batch, out in batches(scene):
        for label, feature in zip(batch.target.tolist(), out.layer(layer), strict=True):
            rows[label].append(feature.numpy())
    for i in range(7):
        for j in range(7):
            common = min(len(rows[i]), len(rows[j]))
            far = 1 - linear_cka(rows[i][:common], rows[j][:common]) if common > 2 else 1.0
            assert loss.cost_KK[i, j].item() == pytest.approx(0 if i == j else 1 - np.exp(-2 * far), abs=1e-9)
    assert 0 < loss.cost_KK[0, 1] < 1 - np.exp(-2)


def test_a_map_gives_a_sample_per_position(scene: Any) -> None:
    loss = term(scene, {"layer": "stage3"})
    prepared(loss, [(scene.batch._replace(target=torch.tensor([0, 1, 0, 1, 2])), doubled(scene)[1])])
    map_BCHW = doubled(scene)[1].layer("stage3")
    samples = [map_BCHW[rows].flatten(2).mT.reshape(-1, 17) for rows in ([0, 2], [1, 3])]
    expected = 1 - torch.exp(-cka_cost(torch.stack(samples)))[0, 1]
    torch.testing.assert_close(loss.cost_KK[0, 1], expected)


def test_at_most_so_many_positions_are_compared(scene: Any) -> None:
    """The middles of halves and of thirds of a map of 5 × 6."""
    labels = scene.batch._replace(target=torch.tensor([0, 1, 0, 1, 2]))
    loss = prepared(term(scene, {"layer": "stage2", "side": 2}), [(labels, doubled(scene)[1])])
    map_BCHW = doubled(scene)[1].layer("stage2")
    corners = torch.stack([map_BCHW[:, :, row, column] for row in (1, 3) for column in (1, 4)], 1)
    samples = torch.stack([corners[rows].reshape(-1, 9) for rows in ([0, 2], [1, 3])])
    torch.testing.assert_close(loss.cost_KK[0, 1], 1 - torch.exp(-cka_cost(samples))[0, 1])


def test_at_most_so_many_images_are_compared(scene: Any) -> None:
    loss, few = prepared(term(scene, {"images": 3}), batches(scene)), term(scene, {})
    kept = [(batch._replace(target=batch.target.clone()), out) for batch, out in batches(scene)]
    kept[2] = (kept[2][0]._replace(target=torch.tensor([0, 6, 1, 5, 3])), kept[2][1])
    prepared(few, kept)  # class 0's fourth image belongs to class 6 now
    torch.testing.assert_close(loss.cost_KK, few.cost_KK)


def test_a_checkpoint_holds_the_cost(scene: Any) -> None:
    loss, fresh = prepared(term(scene, {}), batches(scene)), term(scene, {})
    assert not torch.equal(loss.cost_KK, fresh.cost_KK)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(loss.cost_KK, fresh.cost_KK)


def test_the_cost_before_preparation(scene: Any) -> None:
    expected = 1 - torch.exp(-classifier_cosine(draw(7, 5)))
    torch.testing.assert_close(term(scene, {}, draw(7, 5)).cost_KK, expected)
    off_diagonal = 1 - torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(term(scene, {}).cost_KK, (1 - np.exp(-1)) * off_diagonal, rtol=1e-6, atol=0)
    assert not term(scene, {"cost": "classifier"}, draw(7, 5)).needs_preparation
    with pytest.raises(OtkdError, match="use cka"):
        term(scene, {"cost": "classifier"})


def test_sure_predictions_stay_finite(scene: Any) -> None:
    """Softmax underflows to 0 for all classes but one, in single precision."""
    logits = torch.full((5, 7), -3000.0).scatter_(1, torch.arange(5)[:, None], 3000.0).requires_grad_()
    out_t = scene.out_t._replace(logits=logits.detach().flip(1))
    loss = scene.loss("wkd_logit", {"temperature": 1.0, "epsilon": 0.02})
    value = loss(scene.out_s._replace(logits=logits), out_t, scene.batch).value
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gradient", ["unrolled", "envelope"])
def test_a_single_class_has_nowhere_to_move_to(scene: Any, gradient: str) -> None:
    out_s, out_t = (out._replace(logits=out.logits[:, :1]) for out in doubled(scene))
    loss = Loss(Config(gradient=gradient), Probe(out_s, out_t, 1)).double()
    logits = out_s.logits.clone().requires_grad_()
    result = loss(out_s._replace(logits=logits), out_t, scene.batch._replace(target=torch.zeros(5, dtype=torch.long)))
    result.value.backward()
    assert result.value == 0
    assert [part.item() for part in result.parts.values()] == [0, 0, 0]
    assert (logits.grad == 0).all()


def test_only_the_teacher_needs_the_layer(cards: Any) -> None:
    student, teacher = cards
    assert list(Config(layer="stage3").check(student, teacher)) == []
    assert [problem.path for problem in Config(layer="stage9").check(student, teacher)] == ["layer"]
