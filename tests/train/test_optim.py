"""Schedules against torch's own."""

import pytest
import torch
from torch.optim import lr_scheduler

from otkd.core.trial import AdamW, Constant, Cosine, OneCycle, Sgd, Step, Train
from otkd.train.optim import lr_factor, optimizer


def torch_factors(make, steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(opt)
    factors = []
    for _ in range(steps):
        factors.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return factors


def ours(schedule, epochs, steps=1):
    train = Train(epochs=epochs, schedule=schedule)
    return [lr_factor(train, epoch + step / steps) for epoch in range(epochs) for step in range(steps)]


def test_step_drops_after_the_milestone():
    expected = torch_factors(lambda opt: lr_scheduler.MultiStepLR(opt, [3, 5], gamma=0.1), 8)
    assert ours(Step(name="step", milestones=(3, 5), gamma=0.1), 8) == pytest.approx(expected)


def test_cosine():
    expected = torch_factors(lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5 * 7), 35)
    assert ours(Cosine(name="cosine"), 5, 7) == pytest.approx(expected, abs=1e-9)


def test_onecycle():
    def make(opt):
        return lr_scheduler.OneCycleLR(
            opt,
            max_lr=1.0,
            total_steps=61,
            pct_start=0.3,
            div_factor=25,
            final_div_factor=1e4 / 25,
            cycle_momentum=False,
        )

    expected = torch_factors(make, 60)
    # torch counts the steps between, we count the steps themselves: equal up to one step's width
    assert ours(OneCycle(name="onecycle"), 6, 10) == pytest.approx(expected, abs=0.05)
    assert max(ours(OneCycle(name="onecycle"), 6, 10)) == pytest.approx(1.0)


def test_constant_and_warmup():
    assert ours(Constant(name="constant"), 3) == [1.0, 1.0, 1.0]
    rising = ours(Constant(name="constant", warmup=2), 4, 10)
    assert rising[0] < 0.01
    assert rising == sorted(rising)
    assert rising[20:] == [1.0] * 20


def test_optimizers_take_their_configuration():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    sgd = optimizer(Sgd(name="sgd", lr=0.3, momentum=0.5, weight_decay=0.1, nesterov=True), parameters)
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.3, 0.5, 0.1, True)
    adamw = optimizer(AdamW(name="adamw", lr=0.01, betas=(0.8, 0.9)), parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.9)
