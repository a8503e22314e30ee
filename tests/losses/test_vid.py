"""VID against plain loops over pixels, and against torchdistill."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import VIDLoss
from torchdistill.models.wrapper import Regressor4VID

from otkd.core import plugins
from otkd.core.cards import ModelCard
from otkd.core.errors import ConfigError, OtkdError
from otkd.losses.base import Probe
from otkd.losses.vid import Config, Likelihood, Loss

from .oracles import paired


def stage(likelihood: Any, map_s: Any, map_t: Any) -> float:
    """Mean over images, channels and pixels of half of (t − μ)² / σ² + log σ²."""
    weights = [layer.weight.detach().double().numpy()[:, :, 0, 0] for layer in list(likelihood.regressor)[::2]]
    rho = likelihood.rho_D.detach().double().numpy()
    terms = []
    for b in range(5):
        s, t = paired(map_s, map_t, b)
        for i, j in np.ndindex(s.shape[1:]):
            mean = weights[2] @ np.maximum(weights[1] @ np.maximum(weights[0] @ s[:, i, j], 0), 0)
            for c in range(len(mean)):
                variance = math.log(1 + math.exp(rho[c])) + 1e-5
                terms.append(((t[c, i, j] - mean[c]) ** 2 / variance + math.log(variance)) / 2)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("learned", [True, False])
def test_equals_loops(scene: Any, learned: bool) -> None:
    loss = scene.loss("vid", {"initial_variance": 2.5, "learned": learned})
    with torch.no_grad():
        for likelihood in loss.likelihoods:
            likelihood.rho_D.add_(torch.linspace(-3, 2, len(likelihood.rho_D)))
    pairs = zip(loss.likelihoods, scene.out_s.stages, scene.out_t.stages, strict=True)
    expected = sum(stage(*pair) for pair in pairs)
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == pytest.approx(expected, rel=1e-5)


def test_equals_torchdistill(scene: Any) -> None:
    """On stage 1, whose maps have one size."""
    map_s, map_t = scene.out_s.stages[0], scene.out_t.stages[0]
    ours, theirs = Likelihood(4, 6, 5.0, True), Regressor4VID(4, 6, 6, 1e-5, 5.0)
    theirs.regressor.load_state_dict(ours.regressor.state_dict())
    torch.testing.assert_close(ours.variance(), theirs(map_s)[1].flatten())
    pair = {"student": {"path": "s", "io": "output"}, "teacher": {"path": "t", "io": "output"}}
    expected = VIDLoss({"pair": pair})({"s": {"output": theirs(map_s)}}, {"t": {"output": map_t}})
    torch.testing.assert_close(ours(map_s, map_t), expected)


def test_has_the_published_number_of_parameters() -> None:
    """16 240 for resnet56 → resnet20, 53 984 for wrn_40_2 → wrn_40_1, of RepDistiller's three stages."""

    def count(channels_s: tuple[int, ...], channels_t: tuple[int, ...]) -> int:
        parts = [Likelihood(*pair, 5.0, True) for pair in zip(channels_s, channels_t, strict=True)]
        return sum(p.numel() for part in parts for p in part.parameters())

    assert count((16, 32, 64), (16, 32, 64)) == 16240
    assert count((16, 32, 64), (32, 64, 128)) == 53984


@pytest.mark.parametrize("variance", [0.001, 0.1, 5.0, 200.0])
def test_variances_start_where_they_are_told_to(scene: Any, variance: float) -> None:
    loss = scene.loss("vid", {"initial_variance": variance})
    for likelihood in loss.likelihoods:
        torch.testing.assert_close(
            likelihood.variance(), torch.full_like(likelihood.rho_D, variance), rtol=1e-4, atol=0
        )
    part = loss(scene.out_s, scene.out_t, scene.batch).parts["variance"]
    assert part.item() == pytest.approx(variance, rel=1e-4)


def test_variances_that_are_not_learned_are_kept_but_not_trained(scene: Any) -> None:
    names = [f"likelihoods.{stage}.rho_D" for stage in range(3)]
    learned, fixed = (scene.loss("vid", {"learned": learned}) for learned in (True, False))
    assert {*names} <= dict(learned.named_parameters()).keys()
    assert not {*names} & dict(fixed.named_parameters()).keys()
    assert {*names} <= fixed.state_dict().keys()


def test_a_variance_below_what_can_be_kept_is_refused() -> None:
    with pytest.raises((ConfigError, OtkdError, ValueError), match="initial_variance"):
        plugins.configure("losses", "vid", {"initial_variance": 1e-6})


def test_empty_maps_are_survived(scene: Any) -> None:
    scene.out_s, scene.out_t = (scene.convert(out, torch.zeros_like) for out in (scene.out_s, scene.out_t))
    assert scene.value("vid").value.item() == pytest.approx(1.5 * math.log(5))


def test_unequal_numbers_of_stages_are_a_problem(scene: Any, cards: Any) -> None:
    student, _ = cards
    teacher = ModelCard(1, (*student.taps, "stage4"), (*student.channels, 8), 8)
    (problem,) = Config().check(student, teacher)
    assert "the teacher stage1, stage2, stage3, stage4" in problem.message
    longer = scene.out_t._replace(features=(*scene.out_t.features, scene.out_t.features[-1]))
    with pytest.raises(OtkdError, match="the student has 3, the teacher 4"):
        Loss(Config(), Probe(scene.out_s, longer, 7))
