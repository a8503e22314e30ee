"""Batch norm over the images of all processes of a trial, on GPUs and CPUs; torch's own `SyncBatchNorm` needs a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from otkd.core.errors import TrialError
from otkd.train.distributed import answered, of_everyone


def synchronised(model: nn.Module) -> nn.Module:
    """The same model, in which batch norm in training takes the statistics of the whole batch, over all processes.

    Modules change their class, in place; parameters, buffers and their names stay. Outside a group, and in eval mode,
    they do what they did before. For the network alone: an objective sees whole batches anyway.

    Raises:
        TrialError: it has a kind of batch norm that cannot be synchronised.
    """
    for name, module in model.named_modules():
        if type(module) in _SYNCHRONISED:
            module.__class__ = _SYNCHRONISED[type(module)]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, _Synchronised):
            raise TrialError(
                f"{name} is a {type(module).__name__}, which cannot be synchronised; BatchNorm1d and BatchNorm2d can. "
                f"Train with sync_batchnorm: false, in one process, or take another network."
            )
    return model


class Moments(NamedTuple):
    """Mean and variance of each channel."""

    mean_C: Tensor
    var_C: Tensor
    """Biased: divided by `size`."""
    size: Tensor
    """Scalar: values in each channel."""


def combine(moments: Sequence[Moments]) -> Moments:
    """The moments of all values together (Chan, Golub & LeVeque, 1979): no difference of large numbers is taken."""
    mean_WC, var_WC, size_W = (torch.stack(part) for part in zip(*moments, strict=True))
    size = size_W.sum()
    share_W1 = (size_W / size)[:, None]
    mean_C = (share_W1 * mean_WC).sum(0)
    var_C = (share_W1 * (var_WC + (mean_WC - mean_C).square())).sum(0)
    return Moments(mean_C, var_C, size)


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics in training are those of all processes' images together."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise this process's images (B, C, …)."""
        if not self.training or not _in_group():
            return super().forward(input)
        self._check_input_dim(input)
        moments = _moments_of_all(input.detach())
        self._remember(moments)
        output: Tensor = _Normalise.apply(input, self.weight, self.bias, moments, self.eps)
        return output

    @torch.no_grad()
    def _remember(self, moments: Moments) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased_C = moments.var_C * (moments.size / (moments.size - 1).clamp_min(1))
        self.running_mean.lerp_(moments.mean_C.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), share)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the images of all processes."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all processes."""


_SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
}


class _Normalise(torch.autograd.Function):
    """Batch norm by moments of the whole batch (Ioffe & Szegedy, ICML 2015), of which these are some images."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, moments: Moments, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight_C, *moments)
        ctx.eps = eps
        return F.batch_norm(x, moments.mean_C, moments.var_C, weight_C, bias_C, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, var_C, size = ctx.saved_tensors
        scale_C = (var_C + ctx.eps).rsqrt()
        unit = (x - _along(mean_C, x)) * _along(scale_C, x)
        grad = grads[0].to(unit.dtype)
        grad_bias_C, grad_weight_C = _per_channel_sum(grad), _per_channel_sum(grad * unit)
        total_2C = torch.stack([grad_bias_C, grad_weight_C])
        with answered():
            dist.all_reduce(total_2C)
        mean_grad_C, mean_product_C = total_2C / size
        outer_C = scale_C if weight_C is None else scale_C * weight_C
        grad_x = (grad - _along(mean_grad_C, x) - unit * _along(mean_product_C, x)) * _along(outer_C, x)
        own = (None, None) if weight_C is None else (grad_weight_C.to(weight_C.dtype), grad_bias_C.to(weight_C.dtype))
        return grad_x.to(x.dtype), *own, None, None


def _moments_of_all(x: Tensor) -> Moments:
    """The moments of (B, C, …) over the images of all processes, in single precision or better."""
    own = _moments(x)
    packed = torch.cat([own.mean_C, own.var_C, own.size[None]])
    channels = len(own.mean_C)
    return combine([Moments(row[:channels], row[channels:-1], row[-1]) for row in of_everyone(packed)])


def _moments(x: Tensor) -> Moments:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = wide.new_tensor(x.numel() // x.shape[1])
    if x.numel() == 0:
        return Moments(wide.new_zeros(x.shape[1]), wide.new_zeros(x.shape[1]), size)
    var_C, mean_C = torch.var_mean(wide, _beside_channels(x), correction=0)
    return Moments(mean_C, var_C, size)


def _beside_channels(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def _per_channel_sum(x: Tensor) -> Tensor:
    return x.sum(_beside_channels(x))


def _along(values_C: Tensor, x: Tensor) -> Tensor:
    """Shaped to meet the channels of `x`."""
    return values_C.view(1, -1, *[1] * (x.dim() - 2))


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
