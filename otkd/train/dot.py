"""Distillation-oriented training (Zhao, Cui, Song & Liang, ICCV 2023, Sec. 3.3): SGD with a momentum for either task.

The gradient of the task (terms that look at no teacher) gathers in a buffer of momentum μ − Δ, that of distillation in
one of μ + Δ; the step is their sum. Weight decay goes with the task. A parameter that only one of both reaches (a
projection, say) has one buffer, of momentum μ, and the decay goes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Dot(torch.optim.Optimizer):
    """SGD with two momenta. Call `backward` in place of the loss's, then `step`.

    Args:
        lr: learning rate.
        momentum: μ.
        weight_decay: L2 penalty.
        delta: Δ.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, delta: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "delta": delta})
        self._distilled: dict[nn.Parameter, Tensor | None] = {}

    def backward(self, task: Tensor, distilled: Tensor) -> None:
        """Gradients of both losses: the task's in `grad`, that of distillation apart until the step."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        gradients = _gradients(distilled, parameters, retain_graph=task.requires_grad)
        self._distilled = dict(zip(parameters, gradients, strict=True))
        for parameter, gradient in zip(parameters, _gradients(task, parameters, retain_graph=False), strict=True):
            parameter.grad = gradient

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that either loss has reached."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._move(parameter, parameter.grad, self._distilled.get(parameter), group)
        self._distilled = {}

    def _move(self, parameter: Tensor, task: Tensor | None, distilled: Tensor | None, group: dict[str, Any]) -> None:
        gradients = [gradient for gradient in (task, distilled) if gradient is not None]
        if not gradients:
            return
        delta = group["delta"] if len(gradients) == 2 else 0.0
        first = gradients[0].add(parameter, alpha=group["weight_decay"])
        for name, gradient, momentum in zip(
            ("momentum_buffer", "distilled_buffer"),
            (first, *gradients[1:]),
            (group["momentum"] - delta, group["momentum"] + delta),
            strict=False,
        ):
            state = self.state[parameter]
            state[name] = state[name].mul_(momentum).add_(gradient) if name in state else gradient.clone()
            parameter.sub_(state[name], alpha=group["lr"])


def _gradients(loss: Tensor, parameters: list[nn.Parameter], retain_graph: bool) -> list[Tensor | None]:
    """One for each parameter, None where the loss does not reach it."""
    if not loss.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True))
