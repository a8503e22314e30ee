"""What every loss of `otkd/losses/` has to keep; a new file is tested without being named here."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any, cast

import pytest
import torch

from otkd.core import plugins
from otkd.core.output import ModelOutput
from otkd.losses.base import LossOutput, TermLoss
from otkd.losses.objective import START, Objective, Position


@pytest.fixture(params=plugins.names("losses"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scene(name: str, kin_scene: Any, scene: Any, cards: Any) -> Any:
    """A pair for which the term is defined by default: unequal channels where it takes them."""
    fits = not list(plugins.configure("losses", name, {}).check(*cards))
    return (scene if fits else kin_scene).knowing()


def tensors(out: ModelOutput) -> list[torch.Tensor]:
    return [out.logits, out.embedding, *out.features, *out.preacts]


def grown(scene: Any, out: ModelOutput) -> ModelOutput:
    """`out` as leaves that record gradients."""
    copy: ModelOutput = scene.convert(out, lambda t: t.clone().requires_grad_())
    return copy


def test_value_and_parts_are_finite_scalars(name: str, scene: Any) -> None:
    result = scene.value(name)
    assert isinstance(result, LossOutput)
    assert result.value.shape == ()
    assert result.value.dtype == torch.float32
    for value in (result.value, *result.parts.values()):
        assert value.shape == ()
        assert value.isfinite()
    assert not any(part.requires_grad for part in result.parts.values())


def test_gradient_reaches_the_student_and_its_own_parameters_alone(name: str, scene: Any) -> None:
    loss, out_s, out_t = scene.loss(name), grown(scene, scene.out_s), grown(scene, scene.out_t)
    loss(out_s, out_t, scene.batch).value.backward()
    for stage in loss.stages:
        loss.pretrain(out_s if stage.student else None, out_t, scene.batch).value.backward()
    reached = [tensor.grad for tensor in tensors(out_s) if tensor.grad is not None]
    assert reached
    assert all(gradient.isfinite().all() for gradient in reached)
    assert any(gradient.abs().sum() > 0 for gradient in reached)
    assert all(tensor.grad is None for tensor in tensors(out_t))
    own = [parameter.grad for parameter in loss.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in own)
    assert not own or any(gradient.abs().sum() > 0 for gradient in own)


def test_the_order_of_the_batch_does_not_matter(name: str, scene: Any) -> None:
    """But for terms which say that it does; those have to see a difference."""
    order = torch.tensor([3, 0, 4, 1, 2])
    loss = scene.loss(name).eval()
    value = loss(scene.out_s, scene.out_t, scene.batch).value
    out_s, out_t = (scene.convert(out, lambda t: t[order]) for out in (scene.out_s, scene.out_t))
    permuted = loss(out_s, out_t, scene.batch.rows(order)).value
    if loss.ordered:
        assert (permuted - value).abs() > 1e-4 * value.abs()
    else:
        torch.testing.assert_close(permuted, value, rtol=1e-4, atol=1e-6)


def test_double_precision_agrees(name: str, scene: Any) -> None:
    value = scene.value(name).value
    out_s, out_t = (scene.convert(out, torch.Tensor.double) for out in (scene.out_s, scene.out_t))
    double = scene.loss(name).double()(out_s, out_t, scene.batch).value
    assert double.dtype == torch.float64
    torch.testing.assert_close(value.double(), double, rtol=1e-4, atol=1e-6)


def test_sound_inside_autocast(name: str, scene: Any) -> None:
    """Half-precision features give a single-precision value near that of full precision."""
    value = scene.value(name).value
    out_s, out_t = (scene.convert(out, torch.Tensor.bfloat16) for out in (scene.out_s, scene.out_t))
    out_s, loss = grown(scene, out_s), scene.loss(name)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(out_s, out_t, scene.batch).value
    half.backward()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value, rtol=5e-2, atol=1e-3)
    assert all(tensor.grad.isfinite().all() for tensor in tensors(out_s) if tensor.grad is not None)


def test_it_is_built_the_same_from_the_same_seed(name: str, scene: Any) -> None:
    loss = scene.loss(name)
    torch.testing.assert_close(scene.value(name).value, loss(scene.out_s, scene.out_t, scene.batch).value)


def test_what_is_not_a_number_shows(name: str, scene: Any) -> None:
    """The engine sees a divergence by the loss alone."""
    loss = scene.loss(name).eval()
    for whose in ("student", "teacher") if loss.needs_teacher else ("student",):
        outputs = {"student": scene.out_s, "teacher": scene.out_t}
        outputs[whose] = scene.convert(outputs[whose], lambda t: torch.full_like(t, torch.nan))
        assert not loss(outputs["student"], outputs["teacher"], scene.batch).value.isfinite(), whose


def test_a_term_without_teacher_runs_without_one(name: str, scene: Any) -> None:
    loss = scene.loss(name)
    if not loss.needs_teacher:
        torch.testing.assert_close(loss(scene.out_s, None, scene.batch).value, scene.value(name).value)


def test_a_single_image_will_do(name: str, scene: Any) -> None:
    out_s, out_t = (scene.convert(out, lambda t: t[:1]) for out in (scene.out_s, scene.out_t))
    batch, loss = scene.batch.rows(slice(1)), scene.loss(name)
    out_s = grown(scene, out_s)
    result = loss(out_s, out_t, batch)
    assert all(value.isfinite() for value in (result.value, *result.parts.values()))
    result.value.backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors(out_s) if tensor.grad is not None)


def test_what_it_keeps_in_eval_mode_is_sound_and_changes_nothing(name: str, scene: Any) -> None:
    loss = scene.loss(name).eval()
    before = copy.deepcopy(loss.state_dict())
    kept = [loss.snapshot(scene.out_s, scene.out_t, scene.batch) for _ in range(2)]
    assert kept[0].keys() == kept[1].keys()
    for part, snapshot in kept[0].items():
        assert snapshot.matrix_NM.dim() == 2
        assert snapshot.matrix_NM.isfinite().all()
        assert torch.equal(snapshot.matrix_NM, kept[1][part].matrix_NM)
    value = loss(scene.out_s, scene.out_t, scene.batch).value
    assert torch.equal(loss(scene.out_s, scene.out_t, scene.batch).value, value)
    torch.testing.assert_close(loss.state_dict(), before, rtol=0, atol=0)


def test_identical_networks_are_possible(name: str, scene: Any) -> None:
    """Where student and teacher agree exactly, values and gradients stay finite (norms and roots at zero)."""
    scene.out_s = scene.out_t
    out_s = grown(scene, scene.out_s)
    value = scene.loss(name)(out_s, scene.out_t, scene.batch).value
    value.backward()
    assert value.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in tensors(out_s) if tensor.grad is not None)


def test_the_objective_takes_it_from_plain_json(name: str, scene: Any) -> None:
    terms = {name: plugins.configure("losses", name, {}).model_dump(mode="json")}
    objective = Objective(terms, scene.probe())
    stages = [stage.name for stage in objective.stages]
    position = START if cast(TermLoss, objective.terms[name]).in_training else Position(stages[0], 1, 1)
    result = objective(scene.out_s, scene.out_t, scene.batch, position)
    raw, weighted = (result.metrics[f"train/{name}/{part}"] for part in ("raw", "weighted"))
    torch.testing.assert_close(result.loss.detach(), weighted)
    torch.testing.assert_close(weighted, raw * (objective.configs[name].weight_in(1, 1) if position == START else 1))


def test_configuration_survives_a_round_trip(name: str) -> None:
    dumped = plugins.configure("losses", name, {}).model_dump(mode="json")
    assert plugins.configure("losses", name, dumped).model_dump(mode="json") == dumped
    assert plugins.load("losses", name).Config.model_validate(dumped).model_dump(mode="json") == dumped


def test_the_default_fits_a_fitting_pair(name: str, kin: Any) -> None:
    assert list(plugins.configure("losses", name, {}).check(*kin)) == []


def test_the_class_is_a_term(name: str) -> None:
    assert issubclass(plugins.load("losses", name).Loss, TermLoss)


def test_head_has_the_schema_of_the_file(name: str) -> None:
    heads, files = plugins.head("losses", name), plugins.load("losses", name)
    assert heads.Config.model_json_schema() == files.Config.model_json_schema()


def test_heads_need_no_torch_and_explain_every_setting() -> None:
    """In a process of its own: here torch has long been imported."""
    code = """
import sys
from otkd.core import plugins
from otkd.core.cards import ModelCard
card = ModelCard(1, ("stem", "stage1", "stage2"), (3, 4, 5), 6)
for name in plugins.names("losses"):
    list(plugins.configure("losses", name, {}).check(card, card))
    schema = plugins.head("losses", name).Config.model_json_schema()
    assert all("description" in field for field in schema["properties"].values()), name
assert not {"torch", "ot"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
