"""The flow of the solution procedure against plain loops, and its matrix against torchdistill's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import FSPLoss

from otkd.core.errors import OtkdError
from otkd.losses.base import Probe, Stage
from otkd.losses.fsp import Config, FlowStage, Loss, _flow

from .oracles import paired


def flow(a: Any, b: Any) -> Any:
    out = np.zeros((a.shape[0], b.shape[0]))
    for i, j in np.ndindex(out.shape):
        out[i, j] = (a[i] * b[j]).mean()
    return out


def test_equals_loops(kin_scene: Any) -> None:
    out_s, out_t = kin_scene.out_s, kin_scene.out_t
    expected = 0.0
    for level in range(3):
        for b in range(5):
            flow_s, flow_t = (flow(*paired(*out.features[level : level + 2], b)) for out in (out_s, out_t))
            expected += ((flow_s - flow_t) ** 2).mean() / 5
    assert kin_scene.value("fsp").value.item() == pytest.approx(expected, rel=1e-5)


def test_matrix_equals_torchdistill() -> None:
    """Where no pooling is needed: it pools by the maximum."""
    a, b = torch.randn(3, 5, 7, 4), torch.randn(3, 6, 7, 4)
    torch.testing.assert_close(_flow(a, b), FSPLoss.compute_fsp_matrix(a, b))


def test_a_stage_of_its_own_and_no_other(kin_scene: Any) -> None:
    loss = kin_scene.loss("fsp")
    assert not loss.in_training
    assert loss.stages == (Stage("fsp", 30, 0.05),)
    other = Loss(Config(stages=FlowStage(epochs=2, lr=0.1)), kin_scene.probe())
    assert other.stages == (Stage("fsp", 2, 0.1),)
    own = loss.pretrain(kin_scene.out_s, kin_scene.out_t, kin_scene.batch).value
    assert torch.equal(own, kin_scene.value("fsp").value)


def test_zero_for_one_network_and_finite_for_empty_maps(kin_scene: Any) -> None:
    out_s, out_t = kin_scene.out_s, kin_scene.out_t
    kin_scene.out_t = out_s
    assert kin_scene.value("fsp").value.item() == 0
    kin_scene.out_s, kin_scene.out_t = kin_scene.convert(out_s, torch.zeros_like), out_t
    assert kin_scene.value("fsp").value.item() > 0


def test_unequal_channels_are_a_problem(scene: Any, cards: Any, kin: Any) -> None:
    assert list(Config().check(*kin)) == []
    (problem,) = Config().check(*cards)
    assert "3, 4, 5, 6, the teacher's 4, 6, 9, 17" in problem.message
    with pytest.raises(OtkdError, match=r"\[3, 4, 5, 6\], the teacher's \[4, 6, 9, 17\]"):
        Loss(Config(), scene.probe())


def test_unequal_numbers_of_stages_are_one_problem(kin: Any, kin_scene: Any) -> None:
    student, teacher = kin
    shorter = type(teacher)(1, teacher.taps[:-1], teacher.channels[:-1], 5)
    (problem,) = Config().check(student, shorter)
    assert "the teacher stage1, stage2" in problem.message
    out_t = kin_scene.out_t._replace(features=kin_scene.out_t.features[:-1])
    with pytest.raises(OtkdError, match="one by one"):
        Loss(Config(), Probe(kin_scene.out_s, out_t, 7))
