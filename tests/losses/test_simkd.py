"""SimKD against plain loops, and the network that it deploys."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from otkd.core.errors import OtkdError
from otkd.core.output import ModelOutput
from otkd.losses.simkd import Config, Loss

from .oracles import pooled


def convolved(x: Any, weight: Any) -> Any:
    """Of odd side, zeros around."""
    side, (h, w) = weight.shape[2], x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    return sum(
        np.einsum("bchw,oc->bohw", padded[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i, j in np.ndindex(side, side)
    )


def projected(x: Any, loss: Loss) -> Any:
    state = {key: value.double().numpy() for key, value in loss.projector.layers.state_dict().items()}
    for layer in (0, 3, 6):
        x = convolved(x, state[f"{layer}.weight"])
        x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
        scale, shift = (state[f"{layer + 1}.{name}"][:, None, None] for name in ("weight", "bias"))
        x = (x * scale + shift).clip(0)
    return x


def shaken(loss: Loss) -> Loss:
    """Norms that scale and shift, with a past."""
    generator = torch.Generator().manual_seed(5)
    for tensor in (*loss.parameters(), *(b for n, b in loss.named_buffers() if n.endswith("running_mean"))):
        tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)
    return loss


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_equals_loops(scene: Any, factor: int) -> None:
    loss = shaken(scene.knowing().loss("simkd", {"factor": factor}))
    assert loss.projector.layers[0].out_channels == 17 // factor
    s, t = (out.features[-1].double().numpy() for out in (scene.out_s, scene.out_t))
    size = [min(s.shape[axis], t.shape[axis]) for axis in (2, 3)]
    expected = ((projected(pooled(s, *size), loss) - pooled(t, *size)) ** 2).mean()
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == pytest.approx(expected, rel=1e-4)


def test_a_smaller_student_meets_a_pooled_teacher(scene: Any) -> None:
    scene.out_t = scene.out_t._replace(features=(torch.rand(5, 17, 7, 5),), preacts=())
    loss = shaken(scene.knowing().loss("simkd"))
    s, t = (out.features[-1].double().numpy() for out in (scene.out_s, scene.out_t))
    expected = ((projected(s, loss) - pooled(t, 3, 4)) ** 2).mean()
    assert loss(scene.out_s, scene.out_t, scene.batch).value.item() == pytest.approx(expected, rel=1e-4)


def test_the_target_is_what_the_teacher_pools(scene: Any) -> None:
    """A teacher whose last stage is signed, with a norm before its ReLU: the map after the ReLU counts."""
    loss = scene.knowing().loss("simkd")
    value = loss(scene.out_s, scene.out_t, scene.batch).value
    signed = scene.out_t._replace(features=(*scene.out_t.features[:-1], torch.randn(5, 17, 3, 2)))
    torch.testing.assert_close(loss(scene.out_s, signed, scene.batch).value, value)
    shown = signed._replace(preacts=())
    assert loss(scene.out_s, shown, scene.batch).value != value


class Student(nn.Module):
    """Shows the outputs that it was given, times a weight."""

    def __init__(self, out: ModelOutput) -> None:
        super().__init__()
        self.out, self.factor = out, nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> ModelOutput:
        return self.out._replace(features=tuple(self.factor * f for f in self.out.features))


def test_the_deployed_network_is_what_was_trained(scene: Any) -> None:
    loss = shaken(scene.knowing().loss("simkd")).eval()
    network = loss.deployed(Student(scene.out_s)).eval()
    out = network(scene.batch.image)
    gap = out.features[-1] - torch.nn.functional.adaptive_avg_pool2d(scene.out_t.features[-1], (3, 2))
    torch.testing.assert_close(gap.square().mean(), loss(scene.out_s, scene.out_t, scene.batch).value)
    mean = out.features[-1].mean((2, 3))
    torch.testing.assert_close(out.embedding, mean)
    torch.testing.assert_close(out.logits, mean @ scene.known["classifier_t"].T + scene.known["bias_t"])
    torch.testing.assert_close(out.preacts[-1].relu(), out.features[-1])
    assert len(out.features) == len(out.taps) == len(out.preacts) + 1
    assert network(scene.batch.image).logits.shape == (5, 7)


def test_the_deployed_network_shares_the_terms_weights(scene: Any) -> None:
    """Whenever it was made; so a term restored from its state deploys what the first one did."""
    loss, fresh = shaken(scene.knowing().loss("simkd")).eval(), scene.loss("simkd").eval()
    fresh.bias_t_K.zero_()
    early = fresh.deployed(Student(scene.out_s)).eval()
    expected = loss.deployed(Student(scene.out_s)).eval()(scene.batch.image).logits
    assert not torch.allclose(early(scene.batch.image).logits, expected)
    fresh.load_state_dict(loss.state_dict())
    for network in (early, fresh.deployed(Student(scene.out_s)).eval()):
        assert torch.equal(network(scene.batch.image).logits, expected)


def test_the_deployed_networks_weights_can_be_kept(scene: Any) -> None:
    loss = shaken(scene.knowing().loss("simkd"))
    kept = copy.deepcopy(loss.deployed(Student(scene.out_s)).state_dict())
    other = scene.loss("simkd")
    other.classifier_t_KD.zero_()
    other.deployed(Student(scene.out_s)).load_state_dict(kept)
    torch.testing.assert_close(other.state_dict(), loss.state_dict(), rtol=0, atol=0)


def test_projector_and_classifier_count_as_parameters(scene: Any) -> None:
    loss = scene.knowing().loss("simkd")
    network = loss.deployed(Student(scene.out_s))
    projector = 6 * 8 + 9 * 8 * 8 + 8 * 17 + 2 * (8 + 8 + 17)
    assert sum(p.numel() for p in network.parameters()) == 1 + projector + 7 * 17 + 7
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 1 + projector
    assert sum(p.numel() for p in loss.parameters()) == projector


def test_pairs_without_what_it_needs_are_problems(cards: Any) -> None:
    student, teacher = cards
    (problem,) = Config().check(student, replace(teacher, pools_last=False))
    assert "between them this teacher has another layer" in problem.message
    (problem,) = Config(factor=18).check(student, teacher)
    assert problem.path == "factor"


def test_outputs_without_what_it_needs_are_refused(scene: Any) -> None:
    probe = scene.knowing().probe()
    for missing in ("classifier_t", "bias_t"):
        with pytest.raises(OtkdError, match="ends in a linear layer with a bias"):
            Loss(Config(), probe._replace(**{missing: None}))
    with pytest.raises(OtkdError, match="of 13 inputs, on its last stage, which has 17 channels"):
        Loss(Config(), probe._replace(classifier_t=torch.zeros(7, 13)))
    with pytest.raises(OtkdError, match="no width"):
        Loss(Config(factor=18), probe)
    with pytest.raises(OtkdError, match="there is none"):
        Loss(Config(), probe._replace(teacher=None))
