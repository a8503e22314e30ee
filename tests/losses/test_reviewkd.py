"""ReviewKD against plain loops, and its two parts against torchdistill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchdistill.losses.mid_level import HierarchicalContextLoss
from torchdistill.models.wrapper import AttentionBasedFusion

from otkd.core.cards import ModelCard
from otkd.core.config import Warmup
from otkd.core.errors import OtkdError
from otkd.losses.reviewkd import Config, Fusion, Loss, context

State = dict[str, Any]


def pooled(x: Any, size: int) -> Any:
    """Adaptive average pooling of maps (B, C, H, W) to a square."""
    rows, columns = x.shape[2:]
    out = np.empty((*x.shape[:2], size, size))
    for i, j in np.ndindex(size, size):
        cell = x[
            :, :, i * rows // size : -(-(i + 1) * rows // size), j * columns // size : -(-(j + 1) * columns // size)
        ]
        out[:, :, i, j] = cell.mean((2, 3))
    return out


def resized(x: Any, h: int, w: int) -> Any:
    """Each cell takes the value of the cell that its upper left corner lies in."""
    rows, columns = x.shape[2:]
    return np.stack([np.stack([x[:, :, i * rows // h, j * columns // w] for j in range(w)], -1) for i in range(h)], -2)


def convolved(x: Any, weight: Any) -> Any:
    """3 × 3, zeros around."""
    padded, (h, w) = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), x.shape[2:]
    return sum(
        np.einsum("bchw,oc->bohw", padded[:, :, i : i + h, j : j + w], weight[:, :, i, j]) for i, j in np.ndindex(3, 3)
    )


def normalised(x: Any, state: State, name: str) -> Any:
    x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def expected_context(s: Any, t: Any) -> float:
    sizes = [size for size in (4, 2, 1) if size < s.shape[2]]
    parts = [((s - t) ** 2).mean(), *(((pooled(s, size) - pooled(t, size)) ** 2).mean() for size in sizes)]
    weights = [1, 1 / 2, 1 / 4, 1 / 8][: len(parts)]
    return float(sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights))


def expected(state: State, levels_s: list[Any], levels_t: list[Any]) -> float:
    total, above = 0.0, None
    for i in reversed(range(len(levels_s))):
        fused = np.einsum("bchw,oc->bohw", levels_s[i], state[f"fusions.{i}.into.0.weight"][:, :, 0, 0])
        fused = normalised(fused, state, f"fusions.{i}.into.1")
        if above is not None:
            above = resized(above, *fused.shape[2:])
            both = np.concatenate([fused, above], 1)
            shares = np.einsum("bchw,oc->bohw", both, state[f"fusions.{i}.shares.weight"][:, :, 0, 0])
            shares = 1 / (1 + np.exp(-shares - state[f"fusions.{i}.shares.bias"][:, None, None]))
            fused = fused * shares[:, :1] + above * shares[:, 1:]
        above = resized(fused, *levels_t[i].shape[2:])
        made = normalised(convolved(above, state[f"fusions.{i}.out.0.weight"]), state, f"fusions.{i}.out.1")
        total += expected_context(made, levels_t[i])
    return total


@pytest.mark.parametrize("preacts", [False, True])
def test_equals_loops(scene: Any, preacts: bool) -> None:
    loss, generator = scene.loss("reviewkd", {"preacts": preacts}), torch.Generator().manual_seed(5)
    for parameter in loss.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    state = {key: value.double().numpy() for key, value in loss.state_dict().items()}
    stages_s = scene.out_s.preacts if preacts else scene.out_s.features[1:]
    levels = [
        [level.double().numpy() for level in (*stages, out.embedding[..., None, None])]
        for stages, out in ((stages_s, scene.out_s), (scene.out_t.preacts, scene.out_t))
    ]
    value = loss(scene.out_s, scene.out_t, scene.batch).value.item()
    assert value == pytest.approx(expected(state, *levels), rel=1e-4)


@pytest.mark.parametrize("size", [(11, 9), (5, 6), (3, 2), (1, 1)])
def test_context_equals_torchdistill(size: tuple[int, int]) -> None:
    s, t = torch.randn(2, 5, 7, *size, generator=torch.Generator().manual_seed(0))
    theirs = HierarchicalContextLoss("student", "output", "teacher", "output")
    torch.testing.assert_close(context(s, t), theirs({"student": {"output": (s, None)}}, {"teacher": {"output": t}}))


def test_fusion_equals_torchdistill() -> None:
    torch.manual_seed(0)
    ours, theirs = Fusion(5, 7, 9, fuses=True), AttentionBasedFusion(5, 7, 9, True)
    names = {"into": "conv1", "out": "conv2", "shares": "attention_conv.0"}
    state = {f"{names[key.split('.')[0]]}.{key.split('.', 1)[1]}": value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    x, above = torch.randn(3, 5, 6, 6), torch.randn(3, 7, 3, 3)
    for made, their in zip(ours(x, above, torch.Size((6, 6))), theirs(x, above, 6), strict=True):
        torch.testing.assert_close(made, their)


def test_fused_maps_are_not_wider_than_512(scene: Any) -> None:
    scene.out_s = scene.out_s._replace(embedding=torch.randn(5, 600))
    loss = scene.loss("reviewkd")
    assert {fusion.into[0].out_channels for fusion in loss.fusions} == {512}
    assert loss(scene.out_s, scene.out_t, scene.batch).value.isfinite()


def test_the_weight_warms_up_by_default() -> None:
    assert Config().schedule == Warmup(name="warmup", epochs=20)
    assert Config(schedule=None).schedule is None


def test_pairs_without_what_it_needs_are_problems(cards: Any) -> None:
    student, teacher = cards
    blind = replace(student, preacts=False)
    assert list(Config().check(blind, teacher)) == []
    longer = ModelCard(1, (*teacher.taps, "stage4"), (*teacher.channels, 8), 8)
    cases = [
        (Config(preacts=True), blind, teacher, "the student does not show"),
        (Config(), student, replace(teacher, preacts=False), "the teacher does not show"),
        (Config(), student, longer, "pairs the networks' stages"),
    ]
    for config, card_s, card_t, message in cases:
        (problem,) = config.check(card_s, card_t)
        assert message in problem.message


def test_outputs_without_what_it_needs_are_refused(scene: Any) -> None:
    probe = scene.probe()
    blind_s, blind_t = (out._replace(preacts=()) for out in (probe.student, probe.teacher))
    with pytest.raises(OtkdError, match="the teacher's stages before"):
        Loss(Config(), probe._replace(teacher=blind_t))
    with pytest.raises(OtkdError, match="`preacts: false`"):
        Loss(Config(preacts=True), probe._replace(student=blind_s))
    with pytest.raises(OtkdError, match="there is none"):
        Loss(Config(), probe._replace(teacher=None))
