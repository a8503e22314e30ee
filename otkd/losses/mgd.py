"""MGD: masked generative distillation (Yang, Li, Shao, Shi, Yuan & Yuan, ECCV 2022, Sec. 3.1), for classifiers.

The student's last map, where channels differ brought to the teacher's by a 1 × 1 convolution, loses a random share of
its channels, and a generation block G (3 × 3 convolution, ReLU, 3 × 3 convolution) has to make the teacher's map from
the rest: Σ (t − G(mask · s))², summed over a map, mean over the batch.

As in the authors' release, each channel of each image is dropped by itself with probability `share`, and what is kept
is not scaled up. For detectors the release masks positions of the map instead: `mask: cell`. It refuses maps of unequal
size; here the larger is average-pooled to the smaller.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.draws import uniform
from otkd.losses.maps import same_size, teacher_of
from otkd.ot.precision import widen


class Config(TermConfig):
    """Make the teacher's last map from a masked one of the student."""

    weight: NonNegativeFloat = 7e-5
    """Factor of this term in the weighted sum."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Probability of being masked."""
    mask: Literal["channel", "cell"] = "channel"
    """What is masked: whole channels, or positions of the map."""


class Loss(TermLoss):
    """Squared distance of the generated to the teacher's last map (B, C, H, W), summed over a map."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config
        width_s, width_t = (out.features[-1].shape[1] for out in (probe.student, teacher_of("mgd", probe)))
        self.align = nn.Conv2d(width_s, width_t, 1) if width_s != width_t else nn.Identity()
        first, second = (nn.Conv2d(width_t, width_t, 3, padding=1) for _ in range(2))
        self.generation = nn.Sequential(first, nn.ReLU(), second)
        self._seed, self._step = int(torch.randint(2**31, ())), 0

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        map_s_BDHW, map_t_BCHW = same_size(out_s.features[-1], out_t.features[-1].detach())
        map_s_BCHW = self.align(map_s_BDHW)
        made_BCHW = self.generation(map_s_BCHW * self._mask(map_s_BCHW, batch.indices))
        self._step += self.training
        total = F.mse_loss(widen(made_BCHW), widen(map_t_BCHW), reduction="sum")
        return LossOutput(total / len(map_t_BCHW))

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps, which the masks follow."""
        return {"step": self._step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Read it back."""
        self._step = state["step"]

    def _mask(self, map_BCHW: Tensor, indices_B: Tensor) -> Tensor:
        """0 for what is masked and 1 for the rest: (B, C, 1, 1) or (B, 1, H, W)."""
        channels, height, width = map_BCHW.shape[1:]
        shape = (channels, 1, 1) if self.config.mask == "channel" else (1, height, width)
        drawn = uniform(self._seed, self._step, indices_B, math.prod(shape))
        return (drawn >= self.config.share).to(map_BCHW.dtype).reshape(-1, *shape)
