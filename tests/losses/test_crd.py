"""Contrastive representation distillation against plain loops and torchdistill."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchdistill.losses.mid_level import CRDLoss

from otkd.core.errors import OtkdError
from otkd.core.output import Batch
from otkd.core.seeds import derive
from otkd.losses import crd
from otkd.losses.base import Probe
from otkd.losses.crd import Config, Loss
from otkd.losses.draws import uniform

IMAGES = 45
OPTIONS = {"negatives": 29, "width": 11, "temperature": 0.2, "momentum": 0.3}
"""A pool of all 45 images."""
POOLED = {**OPTIONS, "negatives": 8}
"""A pool of 32 of them."""


def by_class(labels: list[int]) -> list[int]:
    """The images, class by class."""
    return [i for c in range(7) for i in range(IMAGES) if labels[i] == c]


def negatives(loss: Any, labels: list[int], step: int, indices: torch.Tensor, count: int) -> list[list[int]]:
    """Each image's draws, out of a list of the images of other classes that is written down in full."""
    order = by_class(labels)
    if 4 * count < IMAGES:
        shifts = uniform(derive(loss._seed, "pool"), step, torch.tensor([0]), 4 * count)[0].tolist()
        order = [order[int((i + shifts[i]) * IMAGES / (4 * count))] for i in range(4 * count)]
    drawn = uniform(loss._seed, step, indices, count).tolist()
    found = []
    for b, i in enumerate(indices.tolist()):
        others = [j for j in order if labels[j] != labels[i]]
        found.append([others[int(u * len(others))] for u in drawn[b]])
    return found


class Loops:
    """The definition, number by number, in float64: `bank[side][image]`."""

    def __init__(self, loss: Any, labels: list[int], options: dict[str, Any]) -> None:
        self.loss, self.labels, self.options = loss, labels, options
        self.z = [0.0, 0.0]
        self.bank = [np.empty((IMAGES, 11)), np.empty((IMAGES, 11))]
        for row, image in enumerate(by_class(labels)):
            for side, bank in enumerate((loss.bank_s, loss.bank_t)):
                self.bank[side][image] = bank[row].double().numpy()

    def embeddings(self, out_s: Any, out_t: Any) -> list[Any]:
        found = []
        for linear, out in ((self.loss.embed_s, out_s), (self.loss.embed_t, out_t)):
            weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
            x = out.embedding.double().numpy() @ weight.T + bias
            found.append(x / np.sqrt((x**2).sum(1, keepdims=True)))
        return found

    def step(self, step: int, out_s: Any, out_t: Any, indices: torch.Tensor, eps: float) -> float:
        k, tau, keep = (self.options[name] for name in ("negatives", "temperature", "momentum"))
        lists = negatives(self.loss, self.labels, step, indices, k)
        ours, total, images = self.embeddings(out_s, out_t), 0.0, indices.tolist()
        for side in (0, 1):
            bank = self.bank[1 - side]
            e = [[np.exp(ours[side][b] @ bank[j] / tau) for j in (i, *lists[b])] for b, i in enumerate(images)]
            self.z[side] = self.z[side] or IMAGES * np.mean(e)
            a = k / IMAGES
            for row in e:
                p = [value / self.z[side] for value in row]
                total -= np.log(p[0] / (p[0] + a + eps)) / len(e)
                total -= sum(np.log(a / (value + a + eps)) for value in p[1:]) / len(e)
        for side in (0, 1):
            for b, i in enumerate(images):
                mixed = keep * self.bank[side][i] + (1 - keep) * ours[side][b]
                self.bank[side][i] = mixed / np.sqrt((mixed**2).sum())
        return total


def batches(scene: Any) -> list[Batch]:
    """The scene's batch as three different ones; images come again in the last."""
    indices = torch.tensor([[0, 1, 2, 3, 4], [44, 7, 30, 12, 5], [4, 44, 1, 9, 10]])
    return [Batch(scene.batch.image, scene.known["labels_N"][own], own) for own in indices]


@pytest.mark.parametrize("eps", [1e-7, 0.05])
@pytest.mark.parametrize("options", [OPTIONS, POOLED])
def test_equals_loops(scene: Any, options: dict[str, Any], eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with an ε that shows."""
    if eps != crd.EPS:
        monkeypatch.setattr(crd, "EPS", eps)
    loss = scene.knowing().loss("crd", options).train()
    loops = Loops(loss, scene.known["labels_N"].tolist(), options)
    for step, batch in enumerate(batches(scene)):
        value = loss(scene.out_s, scene.out_t, batch).value.item()
        assert value == pytest.approx(loops.step(step, scene.out_s, scene.out_t, batch.indices, eps), rel=1e-5)
    again = Loops(loss, scene.known["labels_N"].tolist(), options)
    for ours, theirs in zip(again.bank, loops.bank, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("options", [OPTIONS, POOLED])
def test_equals_torchdistill(scene: Any, options: dict[str, Any]) -> None:
    """Value, gradients and banks over three steps; what it lacks, the draws, it is given."""
    loss = scene.knowing().loss("crd", options).train()
    labels = scene.known["labels_N"].tolist()
    theirs = CRDLoss("norm", "empty", "norm", 11, IMAGES, options["negatives"], IMAGES, 0.2, 0.3)
    order = by_class(labels)
    theirs.memory_v1[order], theirs.memory_v2[order] = loss.bank_s.clone(), loss.bank_t.clone()
    for step, batch in enumerate(batches(scene)):
        drawn = negatives(loss, labels, step, batch.indices, options["negatives"])
        chosen = torch.cat([batch.indices[:, None], torch.tensor(drawn)], 1)
        u, v = (F.normalize(e(o.embedding)) for e, o in ((loss.embed_s, scene.out_s), (loss.embed_t, scene.out_t)))
        given = {"norm": {"output": u}, "empty": {"input": {"pos_idx": batch.indices, "contrast_idx": chosen}}}
        expected = theirs(given, {"norm": {"output": v}}).squeeze()
        wanted = torch.autograd.grad(expected, list(loss.parameters()))
        value = loss(scene.out_s, scene.out_t, batch).value
        torch.testing.assert_close(value, expected)
        found = torch.autograd.grad(value, list(loss.parameters()))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.bank_s, theirs.memory_v1[order])
    torch.testing.assert_close(loss.bank_t, theirs.memory_v2[order])


@pytest.mark.parametrize("options", [OPTIONS, POOLED])
def test_gradient_is_that_of_the_value(scene: Any, options: dict[str, Any]) -> None:
    """Finite differences in float64, in eval mode and after a step, so that Z is a constant."""
    loss = scene.knowing().loss("crd", options).double().train()
    out_s, out_t = (scene.convert(out, torch.Tensor.double) for out in (scene.out_s, scene.out_t))
    loss(out_s, out_t, scene.batch)
    loss.eval()

    def value(embedding: torch.Tensor) -> Any:
        return 3 * loss(out_s._replace(embedding=embedding), out_t, scene.batch).value

    assert torch.autograd.gradcheck(value, out_s.embedding.clone().requires_grad_())


@pytest.mark.parametrize("options", [OPTIONS, POOLED, {**OPTIONS, "negatives": 2000}])
def test_negatives_are_all_images_of_other_classes(scene: Any, options: dict[str, Any]) -> None:
    """Every one of them is drawn in the end, about as often as any other, and none of the own class."""
    scene.knowing()
    labels = scene.known["labels_N"]
    loss, order, seen = scene.loss("crd", options), by_class(labels.tolist()), torch.zeros(5, IMAGES)
    for _ in range(24000 // options["negatives"]):
        _, pool, position = loss._draw(scene.batch.indices)
        row = position if pool is None else pool[position]
        seen += F.one_hot(torch.tensor(order)[row], IMAGES).sum(1)
        loss._step += 1
    for b in range(5):
        others = labels != labels[b]
        assert seen[b][~others].sum() == 0
        share = seen[b][others] / seen[b].sum() * others.sum()
        assert 0.7 < share.min() <= share.max() < 1.35


def test_a_pool_is_spread_over_the_classes(scene: Any) -> None:
    loss = scene.knowing().loss("crd", POOLED)
    pools = []
    for loss._step in range(50):
        pool = loss._pool()
        assert ((pool + 1) * 32 / IMAGES > torch.arange(32)).all()
        assert (pool * 32 / IMAGES < torch.arange(1, 33)).all()
        pools.append(pool)
    assert len(torch.cat(pools).unique()) == IMAGES


def test_resumes_in_the_middle(scene: Any) -> None:
    loss, fresh = (scene.knowing().loss("crd", POOLED).train() for _ in range(2))
    first, *rest = batches(scene)
    loss(scene.out_s, scene.out_t, first)
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    for batch in rest:
        value, again = (one(scene.out_s, scene.out_t, batch).value for one in (loss, fresh))
        assert torch.equal(value, again)
    torch.testing.assert_close(loss.state_dict(), fresh.state_dict(), rtol=0, atol=0)


def test_banks_change_in_training_alone(scene: Any) -> None:
    loss = scene.knowing().loss("crd", OPTIONS).eval()
    before = copy.deepcopy(loss.state_dict())
    loss(scene.out_s, scene.out_t, scene.batch)
    torch.testing.assert_close(loss.state_dict(), before, rtol=0, atol=0)
    loss.train()(scene.out_s, scene.out_t, scene.batch)
    changed = (loss.bank_s != before["bank_s"]).any(1)
    assert sorted(loss.row_N[scene.batch.indices].tolist()) == changed.nonzero().flatten().tolist()


def test_order_of_the_batch_does_not_matter_in_training(scene: Any) -> None:
    order, made = torch.tensor([3, 0, 4, 1, 2]), []
    for permuted in (torch.arange(5), order):
        loss = scene.knowing().loss("crd", POOLED).train()
        out_s, out_t = (scene.convert(out, lambda t, p=permuted: t[p]) for out in (scene.out_s, scene.out_t))
        batch = scene.batch.rows(permuted)
        made.append([loss(out_s, out_t, batch).value for _ in range(2)] + [loss.bank_s, loss.bank_t])
    torch.testing.assert_close(made[0], made[1])


def test_banks_begin_at_length_1(scene: Any) -> None:
    loss = scene.knowing().loss("crd")
    assert loss.bank_s.shape == loss.bank_t.shape == (IMAGES, 128)
    assert loss.bank_s.norm(dim=1).mean() == pytest.approx(1, abs=0.05)
    for bank in (loss.bank_s, loss.bank_t):
        assert bank.abs().max() <= (3 / 128) ** 0.5
        assert bank.mean() == pytest.approx(0, abs=0.01)
    assert not torch.equal(loss.bank_s, loss.bank_t)


def test_sharp_temperatures_are_survived(scene: Any) -> None:
    """exp(1/τ) is far beyond float32."""
    value = scene.knowing().value("crd", {**OPTIONS, "temperature": 0.001}).value
    assert value.isfinite()


def test_what_is_missing_is_said(scene: Any) -> None:
    with pytest.raises(OtkdError, match="needs the labels"):
        Loss(Config(), scene.probe())
    with pytest.raises(OtkdError, match="there is none"):
        Loss(Config(), Probe(scene.out_s, None, 7, labels_N=torch.arange(7)))


@pytest.mark.parametrize(
    ("others", "count", "refused"), [(0, 16384, True), (1, 16384, False), (9, 5, True), (10, 5, False)]
)
def test_a_class_that_is_nearly_everyone_is_refused(scene: Any, others: int, count: int, refused: bool) -> None:
    """100 images; a pool of 20 has one of every 5, so that it has of 10 others for sure, wherever these lie."""
    labels = torch.zeros(100, dtype=torch.int64)
    labels[100 - others :] = 1
    probe = scene.probe()._replace(labels_N=labels)
    if refused:
        with pytest.raises(OtkdError, match="too few for negatives"):
            Loss(Config(negatives=count), probe)
        return
    loss = Loss(Config(negatives=count), probe)
    draw = loss._draw(torch.arange(100 - others))
    row = draw.negative_BK if draw.pool_P is None else draw.pool_P[draw.negative_BK]
    assert (row >= 100 - others).all()
    assert (row < 100).all()
