"""KD-SVD against numpy's singular value decomposition and plain loops."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from otkd.core.cards import ModelCard
from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.kdsvd import Config, Loss, _right

from .oracles import paired


def matrix(x: Any, axis: str) -> Any:
    """A map (C, H, W) with rows of what the vectors do not lie along."""
    channels, h, w = x.shape
    out = np.empty((channels * h, w) if axis == "width" else (h * w, channels))
    for c, i, j in np.ndindex(x.shape):
        if axis == "width":
            out[c * h + i, j] = x[c, i, j]
        else:
            out[i * w + j, c] = x[c, i, j]
    return out


def vectors(map_s: Any, map_t: Any, b: int, axis: str, k: int) -> tuple[Any, Any]:
    """The k scaled vectors of both networks, as columns."""
    s, t = (matrix(x, axis) for x in paired(map_s, map_t, b))
    _, values, rows_t = np.linalg.svd(t, full_matrices=False)
    rows_s = np.linalg.svd(s, full_matrices=False)[2][: k + 3]
    values = values[:k] / np.sqrt((values[:k] ** 2).sum())
    chosen_s, chosen_t = [], []
    for value, row in zip(values, rows_t[:k], strict=True):
        v = row if row.sum() >= 0 else -row
        nearest = max(rows_s, key=lambda u, v=v: abs(u @ v))
        chosen_s.append(value * (nearest if nearest @ v >= 0 else -nearest))
        chosen_t.append(value * v)
    return np.stack(chosen_s, 1), np.stack(chosen_t, 1)


def expected(out_s: Any, out_t: Any, axis: str, k: int) -> float:
    total = 0.0
    for b in range(5):
        stages = [vectors(*pair, b, axis, k) for pair in zip(out_s.stages, out_t.stages, strict=True)]
        for (s0, t0), (s1, t1) in pairwise(stages):
            for i, j, n in np.ndindex(len(s1), len(s0), k):
                relation_s = math.exp(-((s1[i, n] - s0[j, n]) ** 2) / 8)
                relation_t = math.exp(-((t1[i, n] - t0[j, n]) ** 2) / 8)
                total += (relation_s - relation_t) ** 2 / 5
    return total


@pytest.mark.parametrize(("axis", "k"), [("width", 1), ("width", 2), ("channel", 1), ("channel", 3)])
def test_equals_loops(scene: Any, kin_scene: Any, axis: str, k: int) -> None:
    pair = kin_scene if axis == "channel" else scene
    out_s, out_t = (pair.convert(out, torch.Tensor.double) for out in (pair.out_s, pair.out_t))
    loss = pair.loss("kdsvd", {"axis": axis, "k": k}).double()
    assert loss(out_s, out_t, pair.batch).value.item() == pytest.approx(expected(out_s, out_t, axis, k), rel=1e-8)


@pytest.mark.parametrize(("rows", "columns"), [(13, 5), (4, 11), (6, 6)])
def test_vectors_are_numpys(rows: int, columns: int) -> None:
    """By the Gram matrix of rows where these are fewer."""
    x = torch.randn(5, rows, columns, dtype=torch.float64)
    found = _right(x, 3)
    for b in range(5):
        _, values, right = np.linalg.svd(x[b].numpy(), full_matrices=False)
        cosine = np.abs((right[:3] * found.vectors_BNK[b].numpy().T).sum(1))
        np.testing.assert_allclose(cosine, 1, rtol=1e-10)
        np.testing.assert_allclose(found.values_BK[b] / found.values_BK[b, 0], values[:3] / values[0], rtol=1e-8)


@pytest.mark.parametrize(("rows", "columns"), [(13, 5), (4, 11)])
def test_gradient_is_that_of_the_decomposition(rows: int, columns: int) -> None:
    """PyTorch differentiates the full decomposition, sound where singular values lie apart."""
    generator = torch.Generator().manual_seed(0)
    size = min(rows, columns)
    left, right = (torch.randn(n, size, generator=generator, dtype=torch.float64) for n in (rows, columns))
    values = torch.linspace(2, 0.5, size, dtype=torch.float64)
    x = (torch.linalg.qr(left)[0] * values) @ torch.linalg.qr(right)[0].mT
    goal = torch.randn(columns, 3, generator=generator, dtype=torch.float64)
    ours, theirs = (x[None].clone().requires_grad_() for _ in range(2))
    (_right(ours, 3).vectors_BNK[0] * goal).sum().square().backward()
    v = torch.linalg.svd(theirs[0], full_matrices=False).Vh[:3].mT
    with torch.no_grad():
        sign = (v * _right(x[None], 3).vectors_BNK[0]).sum(0).sign()
    ((v * sign) * goal).sum().square().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-4])
def test_equal_singular_values_have_bounded_gradients(apart: float) -> None:
    """Where the exact gradient grows like 1 / apart."""
    values = 1 + apart * torch.arange(5)
    for rows, columns in ((9, 5), (5, 9)):
        x = torch.zeros(1, rows, columns)
        x[0, range(5), range(5)] = values
        x.requires_grad_()
        (_right(x, 4).vectors_BNK * torch.randn(columns, 4)).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() < 1e5


def test_a_singular_value_of_nearly_zero_has_bounded_gradients() -> None:
    """Dividing by it gives its vector any direction, and a gradient of its inverse's size."""
    x = torch.zeros(1, 2, 9, dtype=torch.float64)
    x[0, range(2), range(2)] = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    x.requires_grad_()
    (_right(x, 2).vectors_BNK * torch.randn(9, 2)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e5


@pytest.mark.parametrize("axis", ["width", "channel"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_gradients_of_empty_and_constant_maps_are_finite(kin_scene: Any, axis: str, value: float) -> None:
    """Of rank 0 and 1: all other singular values are equal."""
    maps = tuple(torch.full_like(f, value).requires_grad_() for f in kin_scene.out_s.features)
    constant = kin_scene.convert(kin_scene.out_t, lambda t: torch.full_like(t, value))
    for out_t in (kin_scene.out_t, constant):
        result = kin_scene.loss("kdsvd", {"axis": axis, "k": 2})(
            kin_scene.out_s._replace(features=maps), out_t, kin_scene.batch
        )
        result.value.backward()
        assert result.value.isfinite()
        assert all(f.grad is not None and f.grad.isfinite().all() for f in maps[1:])
        assert all(f.grad is not None and f.grad.abs().max() < 1e6 for f in maps[1:])


def test_more_channels_than_positions(scene: Any) -> None:
    """Small maps of many channels go by positions; 24 channels on 2 × 3 pixels here."""
    shapes = [(7, 5, 4), (11, 4, 5), (24, 2, 3)]
    maps_s, maps_t = (tuple(torch.randn(5, *shape).double() for shape in shapes) for _ in range(2))
    out_s, out_t = (
        out._replace(features=(out.features[0], *maps)) for out, maps in ((scene.out_s, maps_s), (scene.out_t, maps_t))
    )
    loss = Loss(Config(axis="channel", k=2), Probe(out_s, out_t, 7))
    value = loss(out_s, out_t, scene.batch).value.item()
    assert value == pytest.approx(expected(out_s, out_t, "channel", 2), rel=1e-8)


@pytest.mark.parametrize("axis", ["width", "channel"])
def test_the_library_s_choice_of_signs_does_not_matter(kin_scene: Any, monkeypatch: Any, axis: str) -> None:
    loss = kin_scene.loss("kdsvd", {"axis": axis, "k": 2})
    value = loss(kin_scene.out_s, kin_scene.out_t, kin_scene.batch).value
    eigh = torch.linalg.eigh

    def turned(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = eigh(gram)
        return values, vectors * (
            torch.arange(vectors.numel() // vectors.shape[1]).view(-1, 1, vectors.shape[2]) % 2 * 2 - 1
        )

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    torch.testing.assert_close(loss(kin_scene.out_s, kin_scene.out_t, kin_scene.batch).value, value)


def test_a_map_that_is_no_number_gives_a_value_that_is_none(kin_scene: Any) -> None:
    """Training has to see that it has failed; an exception of the linear algebra library would hide where."""
    broken = kin_scene.convert(kin_scene.out_s, lambda t: t * torch.nan)
    assert kin_scene.loss("kdsvd")(broken, kin_scene.out_t, kin_scene.batch).value.isnan()


def test_zero_for_one_network(scene: Any) -> None:
    scene.out_t = scene.out_s
    assert scene.value("kdsvd").value.item() < 1e-8


def test_unequal_channels_are_a_problem_along_channels(scene: Any, cards: Any, kin: Any) -> None:
    assert list(Config().check(*cards)) == []
    assert list(Config(axis="channel").check(*kin)) == []
    (problem,) = Config(axis="channel").check(*cards)
    assert "4, 5, 6, the teacher's 6, 9, 17" in problem.message
    with pytest.raises(OtkdError, match=r"the student has 4, the teacher 6\. Take axis width"):
        Loss(Config(axis="channel"), scene.probe())


def test_more_vectors_than_there_are_is_refused(scene: Any) -> None:
    with pytest.raises(OtkdError, match="3 singular vectors of a stage that has 2; lower k"):
        Loss(Config(k=3), scene.probe())


def test_a_single_stage_is_refused(scene: Any, cards: Any) -> None:
    one = [ModelCard(1, ("stem", "stage1"), (3, 4), 4)] * 2
    (problem,) = Config().check(*one)
    assert "the student has stage1 alone" in problem.message
    short = [out._replace(features=out.features[:2]) for out in (scene.out_s, scene.out_t)]
    with pytest.raises(OtkdError, match="there is one alone"):
        Loss(Config(), Probe(*short, 7))


def test_unequal_numbers_of_stages_are_a_problem(scene: Any, cards: Any) -> None:
    student, _ = cards
    teacher = ModelCard(1, (*student.taps, "stage4"), (*student.channels, 8), 8)
    (problem,) = Config().check(student, teacher)
    assert "the teacher stage1, stage2, stage3, stage4" in problem.message
    longer = scene.out_t._replace(features=(*scene.out_t.features, scene.out_t.features[-1]))
    with pytest.raises(OtkdError, match="the student has 3, the teacher 4"):
        Loss(Config(), Probe(scene.out_s, longer, 7))
