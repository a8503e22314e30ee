"""Distillation-oriented training against torch's SGD and against its definition, number by number."""

import copy

import pytest
import torch
from pydantic import ValidationError

from otkd.core.trial import Dot as Config
from otkd.core.trial import Train
from otkd.sweep.runner import Mailbox
from otkd.train import fit
from otkd.train.dot import Dot
from otkd.train.optim import optimizer


def losses(weights, x):
    """A task that reaches the first two, a distillation that reaches the last two, of three parameters."""
    both, task_only, distilled_only = weights
    task = ((x @ both).square() + (x @ task_only).square()).mean()
    return task, ((x @ both - 1).abs() + (x @ distilled_only - 2).square()).mean()


def start():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64)) for _ in range(3)]


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(steps)]


def run(weights, steps=6, **options):
    made = Dot(weights, **{"lr": 0.03, "momentum": 0.9, "weight_decay": 0.01, "delta": 0.075, **options})
    for x in batches(steps):
        made.zero_grad(set_to_none=True)
        made.backward(*losses(weights, x))
        made.step()
    return weights


def test_without_delta_it_is_sgd():
    theirs = start()
    sgd = torch.optim.SGD(theirs, lr=0.03, momentum=0.9, weight_decay=0.01)
    for x in batches(6):
        sgd.zero_grad()
        sum(losses(theirs, x)).backward()
        sgd.step()
    torch.testing.assert_close(run(start(), delta=0.0), theirs)


def test_two_momenta_by_hand():
    weights = [w.detach().clone() for w in start()]
    buffers = {}
    for x in batches(6):
        leaves = [w.clone().requires_grad_() for w in weights]
        gradients = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses(leaves, x)]
        for i, (task, distilled) in enumerate(zip(*gradients, strict=True)):
            parts = {}
            if task is not None:
                parts["task"] = (task + 0.01 * weights[i], 0.825 if distilled is not None else 0.9)
            if distilled is not None:
                decay = 0.0 if task is not None else 0.01
                parts["distilled"] = (distilled + decay * weights[i], 0.975 if task is not None else 0.9)
            for name, (gradient, momentum) in parts.items():
                buffers[name, i] = momentum * buffers.get((name, i), 0.0) + gradient
                weights[i] = weights[i] - 0.03 * buffers[name, i]
    torch.testing.assert_close([w.detach() for w in run(start())], weights)


def test_its_state_goes_on_where_it_was():
    weights = start()
    made = optimizer(Config(name="dot"), weights)
    for x in batches(2):
        made.backward(*losses(weights, x))
        made.step()
    kept, again = copy.deepcopy(made.state_dict()), [torch.nn.Parameter(w.detach().clone()) for w in weights]
    other = optimizer(Config(name="dot"), again)
    other.load_state_dict(kept)
    for pair in ((made, weights), (other, again)):
        pair[0].backward(*losses(pair[1], batches(3)[-1]))
        pair[0].step()
    assert all(torch.equal(one, two) for one, two in zip(weights, again, strict=True))


@pytest.mark.parametrize("method", ["student", "kd", "ot"])
def test_a_trial_trains_with_it(environment, trial, method):
    train = Train(epochs=2, batch_size=32, optimizer=Config(name="dot", lr=0.02))
    first, second = (fit([trial(method, train=train)], Mailbox(), environment(name)) for name in "ab")
    assert first[0].status == "finished"
    assert first[0].metrics["test/last/loss"] == second[0].metrics["test/last/loss"]


def test_what_does_not_go_with_it_is_refused():
    with pytest.raises(ValidationError, match="clip_norm is of one gradient"):
        Train(epochs=1, clip_norm=1.0, optimizer=Config(name="dot"))
    with pytest.raises(ValidationError, match="between 0 and 1"):
        Config(name="dot", delta=0.2)
