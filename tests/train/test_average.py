"""The running average of weights, against a loop over steps in float64 and against its definition."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from otkd.models.factory import create
from otkd.train.average import Average


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 1, bias=False))


def drawn(module: nn.Module, seed: int) -> Iterator[None]:
    """Fill floating tensors anew for ever, and count in the others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
                else:
                    tensor += 1
        yield


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@settings(max_examples=25, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(1, 6), st.integers(0, 99))
def test_equals_the_sum_written_out(decay: float, steps: int, seed: int) -> None:
    """After step n: decay^(n-1) times the first weights, and (1 - decay) decay^(n-k) times those of step k."""
    module = network().double()
    average, seen = Average(module, decay), []
    for _, _ in zip(range(steps), drawn(module, seed), strict=False):
        average.update(module)
        seen.append(values(module))
    shares = [decay ** (steps - 1)] + [(1 - decay) * decay ** (steps - 1 - step) for step in range(1, steps)]
    for name, tensor in average.module.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(share * step[name] for share, step in zip(shares, seen, strict=True))
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)
        else:
            assert tensor == steps
    assert average.updates == steps


def test_begins_with_the_weights_after_the_first_step_and_follows_from_there() -> None:
    module = network()
    before = values(module)
    average, steps = Average(module, 0.9), drawn(module, 1)
    next(steps)
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.module.state_dict().items())
    average.update(module)
    assert all(torch.equal(tensor, average.module.state_dict()[name]) for name, tensor in module.state_dict().items())
    first = values(module)
    next(steps)
    assert all(torch.equal(tensor, first[name]) for name, tensor in average.module.state_dict().items())
    average.update(module)
    assert not torch.equal(average.module.state_dict()["0.weight"], first["0.weight"])


def test_is_frozen_in_eval_mode_and_leaves_the_network_as_it_is() -> None:
    module = network().train()
    average, kept = Average(module, 0.5), values(module)
    made = average.module
    average.update(module)
    average.update(module)
    assert average.module is made
    assert not any(part.training for part in made.modules())
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())


def test_goes_on_from_a_checkpoint_bit_for_bit() -> None:
    module, resumed = network(), network()
    whole, steps = Average(module, 0.7), drawn(module, 2)
    for _ in range(3):
        next(steps)
        whole.update(module)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    other = Average(resumed, 0.7)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.updates == 3
    for _ in range(2):
        next(steps)
        whole.update(module)
        other.update(module)
    assert all(
        torch.equal(tensor, other.module.state_dict()[name]) for name, tensor in whole.module.state_dict().items()
    )


def test_a_checkpoint_before_the_first_step_still_begins_with_it() -> None:
    module = network()
    other = Average(network(), 0.7)
    other.load_state_dict(Average(module, 0.7).state_dict())
    next(drawn(module, 3))
    other.update(module)
    assert torch.equal(other.module.state_dict()["0.weight"], module.state_dict()["0.weight"])


def test_a_tensor_that_two_modules_share_is_averaged_once() -> None:
    module = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()
    module[1].weight = module[0].weight
    average, steps, expected = Average(module, 0.75), drawn(module, 4), torch.zeros(())
    for step in range(3):
        next(steps)
        average.update(module)
        weight = module[0].weight.detach()
        expected = 0.75 * expected + 0.25 * weight if step else weight.clone()
    assert average.module.get_parameter("0.weight") is average.module.get_parameter("1.weight")
    torch.testing.assert_close(average.module.get_parameter("1.weight").detach(), expected, rtol=1e-12, atol=1e-12)


def test_keeps_channels_last_and_equals_the_average_without() -> None:
    module = network()
    twin = network().to(memory_format=torch.channels_last)
    average, twins = Average(module, 0.6), Average(twin, 0.6)
    for _, _ in zip(drawn(module, 5), range(3), strict=False):
        twin.load_state_dict(module.state_dict())
        average.update(module)
        twins.update(twin)
    assert twins.module.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(twins.module.get_parameter("0.weight"), average.module.get_parameter("0.weight"))


def test_follows_a_wrapper_that_is_made_anew_for_each_step() -> None:
    inner, scale = network(), nn.Parameter(torch.ones(3))

    def wrapper() -> nn.Module:
        made = nn.ModuleDict({"inner": inner})
        made.register_parameter("scale", scale)
        return made

    average, steps = Average(wrapper(), 0.5), drawn(inner, 6)
    for _ in range(2):
        next(steps)
        average.update(wrapper())
    assert average.module.get_submodule("inner") is not inner
    assert not torch.equal(average.module.get_parameter("inner.0.weight"), inner.get_parameter("0.weight"))


def test_another_network_is_refused() -> None:
    average = Average(network(), 0.5)
    with pytest.raises(ValueError, match="zip"):
        average.update(nn.Linear(3, 5))


def test_the_average_of_a_network_of_ours_computes_what_its_weights_say() -> None:
    module = create("resnet8", classes=7, channels=3, seed=0)
    average = Average(module, 0.5)
    for _, _ in zip(drawn(module, 7), range(2), strict=False):
        average.update(module)
    fresh = create("resnet8", classes=7, channels=3, seed=1)
    fresh.load_state_dict(average.module.state_dict())
    image = torch.randn(3, 3, 17, 13, generator=torch.Generator().manual_seed(8))
    with torch.inference_mode():
        assert torch.equal(average.module(image).logits, fresh.eval()(image).logits)
