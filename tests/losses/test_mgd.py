"""MGD against plain loops, with the masks of `otkd.losses.draws`, which has tests of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from otkd.core.errors import OtkdError
from otkd.losses.draws import uniform
from otkd.losses.mgd import Config, Loss

from .oracles import pooled


def convolved(x: Any, weight: Any, bias: Any) -> Any:
    k = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (k, k), (k, k)))
    out = np.empty((len(x), len(weight), *x.shape[2:]))
    for b, o, i, j in np.ndindex(*out.shape):
        out[b, o, i, j] = (padded[b, :, i : i + 2 * k + 1, j : j + 2 * k + 1] * weight[o]).sum() + bias[o]
    return out


def masked(x: Any, loss: Loss, share: float, mask: str) -> Any:
    channels, h, w = x.shape[1:]
    drawn = uniform(loss._seed, 0, torch.arange(5), channels if mask == "channel" else h * w).numpy()
    out = x.copy()
    for b, c, i, j in np.ndindex(*x.shape):
        if drawn[b, c if mask == "channel" else i * w + j] < share:
            out[b, c, i, j] = 0
    return out


def expected(loss: Loss, scene: Any, share: float, mask: str) -> float:
    state = {key: value.double().numpy() for key, value in loss.state_dict().items() if isinstance(value, torch.Tensor)}
    maps = [out.features[-1].double().numpy() for out in (scene.out_s, scene.out_t)]
    size = [min(m.shape[axis] for m in maps) for axis in (2, 3)]
    s, t = (pooled(m, *size) for m in maps)
    if "align.weight" in state:
        s = convolved(s, state["align.weight"], state["align.bias"])
    hidden = convolved(masked(s, loss, share, mask), *(state[f"generation.0.{name}"] for name in ("weight", "bias")))
    made = convolved(hidden.clip(0), *(state[f"generation.2.{name}"] for name in ("weight", "bias")))
    return float(((made - t) ** 2).sum() / 5)


@pytest.mark.parametrize("mask", ["channel", "cell"])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.6])
def test_equals_loops(scene: Any, share: float, mask: str) -> None:
    loss = scene.loss("mgd", {"share": share, "mask": mask})
    value = loss(scene.out_s, scene.out_t, scene.batch).value.item()
    assert value == pytest.approx(expected(loss, scene, share, mask), rel=1e-4)


def test_equal_channels_are_not_aligned(kin_scene: Any) -> None:
    loss = kin_scene.loss("mgd")
    assert "align.weight" not in loss.state_dict()
    value = loss(kin_scene.out_s, kin_scene.out_t, kin_scene.batch).value.item()
    assert value == pytest.approx(expected(loss, kin_scene, 0.15, "channel"), rel=1e-4)


def test_every_step_has_its_masks(scene: Any) -> None:
    """In train mode; in eval mode the step's masks stay. A restored term goes on where it was left."""
    loss = scene.loss("mgd", {"share": 0.5})
    first, second = (loss(scene.out_s, scene.out_t, scene.batch).value.item() for _ in range(2))
    assert first != second
    third = scene.loss("mgd", {"share": 0.5})
    third.load_state_dict(loss.state_dict())
    looked_at = [third.eval()(scene.out_s, scene.out_t, scene.batch).value for _ in range(2)]
    assert torch.equal(*looked_at)
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == looked_at[0].item() != second


def test_the_share_is_masked(scene: Any) -> None:
    loss = scene.loss("mgd", {"share": 0.3})
    kept = loss._mask(torch.zeros(400, 17, 3, 2), torch.arange(400))
    assert kept.shape == (400, 17, 1, 1)
    assert kept.mean().item() == pytest.approx(0.7, abs=0.02)


def test_without_teacher_it_is_refused(scene: Any) -> None:
    with pytest.raises(OtkdError, match="there is none"):
        Loss(Config(), scene.probe()._replace(teacher=None))
