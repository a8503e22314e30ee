"""OFD against plain loops; margins against scipy's truncated normal distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from otkd.core.cards import ModelCard
from otkd.core.errors import OtkdError
from otkd.losses.ofd import Config, Loss, margins

from .oracles import pooled


def connected(x: Any, state: dict[str, Any], stage: int) -> Any:
    y = np.einsum("bchw,oc->bohw", x, state[f"connectors.{stage}.0.weight"][:, :, 0, 0])
    y = (y - y.mean((0, 2, 3), keepdims=True)) / np.sqrt(y.var((0, 2, 3), keepdims=True) + 1e-5)
    scale, shift = (state[f"connectors.{stage}.1.{name}"][:, None, None] for name in ("weight", "bias"))
    return y * scale + shift


def expected_margin(scale: float, shift: float) -> float:
    share = truncnorm.cdf(0, -np.inf, np.inf, loc=shift, scale=abs(scale))
    if share <= 0.001:
        return -3 * abs(scale)
    return float(truncnorm.mean(-np.inf, -shift / abs(scale), loc=shift, scale=abs(scale)))


def element(s: float, t: float, margin: float) -> float:
    if t > 0:
        return (s - t) ** 2
    if t > margin:
        return (s - t) ** 2 if s > t else 0
    return (s - margin) ** 2 if s > margin else 0


def test_equals_loops(scene: Any) -> None:
    loss, generator = scene.knowing().loss("ofd"), torch.Generator().manual_seed(5)
    for parameter in loss.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    state = {key: value.double().numpy() for key, value in loss.state_dict().items()}
    total = 0.0
    for stage, (map_s, map_t) in enumerate(zip(scene.out_s.preacts, scene.out_t.preacts, strict=True)):
        size = [min(map_s.shape[axis], map_t.shape[axis]) for axis in (2, 3)]
        s = pooled(connected(map_s.double().numpy(), state, stage), *size)
        t = pooled(map_t.double().numpy(), *size)
        scales, shifts = (p.double().tolist() for p in scene.known["norms_t"][stage])
        limits = [expected_margin(*pair) for pair in zip(scales, shifts, strict=True)]
        cells = sum(element(s[i], t[i], limits[i[1]]) for i in np.ndindex(s.shape))
        total += 2.0 ** (stage - 2) * cells / 5
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == pytest.approx(total, rel=1e-4)


def test_margins() -> None:
    scale = torch.tensor([1.0, -2.0, 0.3, 0.1, 1.0, 1e-3], dtype=torch.float64)
    shift = torch.tensor([0.0, 0.7, -1.1, 2.0, 3.08, -4.0], dtype=torch.float64)
    expected = [expected_margin(*pair) for pair in zip(scale.tolist(), shift.tolist(), strict=True)]
    assert margins(scale, shift).tolist() == pytest.approx(expected, rel=1e-8)
    assert margins(scale, shift)[3] == pytest.approx(-0.3)


def test_a_dead_channel_has_a_margin() -> None:
    """A batch norm of scale 0 gives its shift, nothing else."""
    assert margins(torch.zeros(2), torch.tensor([-0.5, 0.5])).tolist() == pytest.approx([-0.5, 0.0], abs=1e-9)


def test_what_the_relu_drops_need_only_be_low(scene: Any) -> None:
    """A teacher far below its margins: it does not matter how far."""
    loss = scene.knowing().loss("ofd")
    low, lower = (scene.out_t._replace(preacts=tuple(p * 0 - x for p in scene.out_t.preacts)) for x in (50, 90))
    values = [loss(scene.out_s, out, scene.batch).value for out in (low, lower)]
    torch.testing.assert_close(*values)
    assert values[0] > 0


def test_pairs_without_what_it_needs_are_problems(scene: Any, cards: Any) -> None:
    student, teacher = cards
    cases = [
        (student, replace(teacher, norms=False), "batch norm before each stage's last ReLU"),
        (student, replace(teacher, preacts=False), "the teacher does not show"),
        (replace(student, preacts=False), teacher, "the student does not show"),
        (student, ModelCard(1, (*teacher.taps, "stage4"), (*teacher.channels, 8), 8), "pairs the networks' stages"),
    ]
    for card_s, card_t, message in cases:
        (problem,) = Config().check(card_s, card_t)
        assert message in problem.message


def test_outputs_without_what_it_needs_are_refused(scene: Any) -> None:
    with pytest.raises(OtkdError, match="3 pairs; got 0"):
        Loss(Config(), scene.probe())
    probe = scene.knowing().probe()
    for who in ("student", "teacher"):
        with pytest.raises(OtkdError, match=f"the {who}'s stages before"):
            Loss(Config(), probe._replace(**{who: getattr(probe, who)._replace(preacts=())}))
    with pytest.raises(OtkdError, match="there is none"):
        Loss(Config(), probe._replace(teacher=None))
