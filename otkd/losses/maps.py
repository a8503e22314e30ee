"""Comparing the feature maps of two networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.errors import OtkdError
from otkd.core.output import ModelOutput
from otkd.losses.base import Probe


def teacher_of(name: str, probe: Probe) -> ModelOutput:
    """The teacher's output.

    Raises:
        OtkdError: the term `name` has none.
    """
    if probe.teacher is None:
        raise OtkdError(f"{name} compares with a teacher, and there is none")
    return probe.teacher


def paired_stages(name: str, probe: Probe) -> list[tuple[Tensor, Tensor]]:
    """The stages (B, C, H, W) of student and teacher, side by side.

    Raises:
        OtkdError: there is no teacher, or it has another number of stages.
    """
    stages_s, stages_t = probe.student.stages, teacher_of(name, probe).stages
    if len(stages_s) != len(stages_t):
        raise OtkdError(
            f"{name} pairs the networks' stages; the student has {len(stages_s)}, the teacher {len(stages_t)}"
        )
    return list(zip(stages_s, stages_t, strict=True))


def same_size(map_s_BCHW: Tensor, map_t_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the spatially larger of two maps to the size of the smaller, each side by itself."""
    (h_s, w_s), (h_t, w_t) = map_s_BCHW.shape[-2:], map_t_BCHW.shape[-2:]
    size = (min(h_s, h_t), min(w_s, w_t))
    return _pooled(map_s_BCHW, size), _pooled(map_t_BCHW, size)


def _pooled(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    return map_BCHW if tuple(map_BCHW.shape[-2:]) == size else F.adaptive_avg_pool2d(map_BCHW, size)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where there is one value per channel, which has no variance."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)
