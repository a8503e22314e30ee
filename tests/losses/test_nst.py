"""NST against plain loops over pairs of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from otkd.core.cards import ModelCard
from otkd.core.errors import OtkdError
from otkd.losses.base import Probe
from otkd.losses.nst import Config, Loss, _by_channels, _by_positions, _stage

from .oracles import paired


def mean_kernel(x: Any, y: Any) -> float:
    total = 0.0
    for a in x:
        for b in y:
            total += float((a * b).sum() / np.sqrt((a**2).sum()) / np.sqrt((b**2).sum())) ** 2
    return total / len(x) / len(y)


def discrepancy(map_s: Any, map_t: Any) -> float:
    total = 0.0
    for b in range(5):
        s, t = paired(map_s, map_t, b)
        total += mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)
    return total / 5


def test_equals_loops(scene: Any) -> None:
    """Stages 1 and 2 go by channels, stage 3 by positions."""
    scene.out_s, scene.out_t = (
        scene.convert(out, lambda t: t + torch.linspace(0, 1, t.shape[-1])) for out in (scene.out_s, scene.out_t)
    )
    expected = sum(discrepancy(*pair) for pair in zip(scene.out_s.stages, scene.out_t.stages, strict=True))
    assert scene.value("nst").value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shapes", [((3, 5), (7, 5)), ((11, 4), (13, 4))])
def test_both_ways_agree(shapes: tuple[tuple[int, int], ...]) -> None:
    x, y = (torch.nn.functional.normalize(torch.randn(5, *shape), dim=-1).double() for shape in shapes)
    torch.testing.assert_close(_by_channels(x, y), _by_positions(x, y))


class Largest(TorchDispatchMode):
    """Remembers the most numbers in a tensor that any operation made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(t, torch.Tensor)]
        self.most = max([self.most, *(t.numel() for t in made)])
        return out


@pytest.mark.parametrize(("channels", "side"), [((31, 37), 6), ((41, 13), 3), ((5, 7), 11)])
def test_no_tensor_is_larger_than_a_map_or_channels_squared(channels: tuple[int, int], side: int) -> None:
    map_s, map_t = (torch.randn(3, c, side, side) for c in channels)
    map_s.requires_grad_()
    with Largest() as seen:
        _stage(map_s, map_t).backward()
    most = 3 * max(channels) * max(*channels, side**2)
    assert 0 < seen.most <= most


def test_zero_for_one_network(scene: Any) -> None:
    scene.out_t = scene.out_s
    assert abs(scene.value("nst").value.item()) < 1e-6


def test_silent_channels_and_empty_maps_are_survived(scene: Any) -> None:
    """A channel that is 0 has no direction; its gradient must be a number."""
    for silent in (slice(0, 1), slice(None)):
        maps = [f.detach().clone() for f in scene.out_s.features]
        for map_s in maps:
            map_s[:, silent] = 0
            map_s.requires_grad_()
        scene.out_s = scene.out_s._replace(features=tuple(maps))
        value = scene.value("nst").value
        value.backward()
        assert value.isfinite()
        assert all(map_s.grad.isfinite().all() for map_s in maps[1:])


def test_unequal_numbers_of_stages_are_a_problem(scene: Any, cards: Any) -> None:
    student, _ = cards
    teacher = ModelCard(1, (*student.taps, "stage4"), (*student.channels, 8), 8)
    (problem,) = Config().check(student, teacher)
    assert "the teacher stage1, stage2, stage3, stage4" in problem.message
    longer = scene.out_t._replace(features=(*scene.out_t.features, scene.out_t.features[-1]))
    with pytest.raises(OtkdError, match="the student has 3, the teacher 4"):
        Loss(Config(), Probe(scene.out_s, longer, 7))
