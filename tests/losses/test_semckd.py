"""SemCKD against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from otkd.core.errors import OtkdError
from otkd.losses.semckd import Config, Loss

from .oracles import pooled


def convolved(x: Any, weight: Any) -> Any:
    """Of odd side, zeros around."""
    side, (h, w) = weight.shape[2], x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    return sum(
        np.einsum("bchw,oc->bohw", padded[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i, j in np.ndindex(side, side)
    )


def normalised(x: Any, state: dict[str, Any], name: str) -> Any:
    x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def projected(x: Any, state: dict[str, Any], name: str) -> Any:
    x = normalised(convolved(x, state[f"{name}.0.weight"]), state, f"{name}.1").clip(0)
    x = normalised(convolved(x, state[f"{name}.3.weight"]), state, f"{name}.4").clip(0)
    return convolved(x, state[f"{name}.6.weight"])


def embedded(x: Any, batch_size: int, state: dict[str, Any], name: str) -> Any:
    """Unit vectors of the rows of the similarity matrix, filled up with zeros."""
    rows = []
    for b in range(len(x)):
        row = np.zeros(batch_size)
        for other in range(len(x)):
            row[other] = (x[b] * x[other]).sum()
        hidden = (state[f"{name}.0.weight"] @ row + state[f"{name}.0.bias"]).clip(0)
        made = state[f"{name}.2.weight"] @ hidden + state[f"{name}.2.bias"]
        rows.append(made / np.sqrt((made**2).sum()))
    return rows


def expected(loss: Loss, out_s: Any, out_t: Any, batch_size: int, scale: float) -> float:
    state = {key: value.double().numpy() for key, value in loss.state_dict().items()}
    stages_s, stages_t = ([f.double().numpy() for f in out.features[1:]] for out in (out_s, out_t))
    total = 0.0
    for i, f in enumerate(stages_s):
        queries = embedded(f, batch_size, state, f"queries.{i}")
        keys = [embedded(t, batch_size, state, f"keys.{j}") for j, t in enumerate(stages_t)]
        scores = np.array([[q @ key[b] / scale for key in keys] for b, q in enumerate(queries)])
        for j, t in enumerate(stages_t):
            size = [min(f.shape[axis], t.shape[axis]) for axis in (2, 3)]
            made = projected(pooled(f, *size), state, f"projectors.{i * len(stages_t) + j}")
            for b in range(len(f)):
                weight = np.exp(scores[b, j]) / np.exp(scores[b]).sum()
                total += weight * ((made[b] - pooled(t, *size)[b]) ** 2).mean()
    return total / len(stages_s) / len(stages_s[0])


def shaken(loss: Loss) -> Loss:
    """Norms that scale and shift; attention that does not saturate."""
    generator = torch.Generator().manual_seed(5)
    for parameter in loss.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return loss


@pytest.mark.parametrize(("batch_size", "scale"), [(5, 1.0), (8, 0.2), (13, 1.0)])
def test_equals_loops(scene: Any, batch_size: int, scale: float) -> None:
    """Also for a batch that is not full."""
    scene.known["batch_size"] = batch_size
    loss = shaken(scene.loss("semckd", {"scale": scale}))
    value = loss(scene.out_s, scene.out_t, scene.batch).value.item()
    assert value == pytest.approx(expected(loss, scene.out_s, scene.out_t, batch_size, scale), rel=1e-4)


@pytest.mark.parametrize("taken", [1, 2])
def test_any_numbers_of_stages(scene: Any, cards: Any, taken: int) -> None:
    scene.known["batch_size"] = 8
    scene.out_t = scene.out_t._replace(features=scene.out_t.features[: taken + 1])
    loss = shaken(scene.loss("semckd"))
    value = loss(scene.out_s, scene.out_t, scene.batch).value.item()
    assert value == pytest.approx(expected(loss, scene.out_s, scene.out_t, 8, 1.0), rel=1e-4)


def test_the_published_widths(scene: Any) -> None:
    loss = scene.loss("semckd")
    shapes = [tuple(layer.weight.shape) for layer in (loss.queries[0][0], loss.queries[0][2])]
    assert shapes == [(32, 64), (16, 32)]


def test_attention_is_learned(scene: Any) -> None:
    scene.known["batch_size"] = 5
    loss = shaken(scene.loss("semckd"))
    loss(scene.out_s, scene.out_t, scene.batch).value.backward()
    assert loss.queries[0][2].weight.grad.abs().sum() > 0
    assert loss.keys[0][2].weight.grad.abs().sum() > 0


def test_a_larger_batch_is_refused(scene: Any) -> None:
    scene.known["batch_size"] = 4
    with pytest.raises(OtkdError, match="batches of 4 images; got one of 5"):
        scene.value("semckd")


def test_without_teacher_it_is_refused(scene: Any) -> None:
    with pytest.raises(OtkdError, match="there is none"):
        Loss(Config(), scene.probe()._replace(teacher=None))
