"""FitNets: hints from a middle layer (Romero et al., ICLR 2015, Sec. 2.2, Eq. 3).

Squared difference between the teacher's map and the student's after a regressor: a convolution that brings the
student's map to the teacher's size and channels, batch norm and ReLU (RepDistiller's `ConvReg`).

Disagreements, each an option here: the paper and torchdistill train the student up to the hint first and distil
afterwards (`stages: {epochs, lr}`), RepDistiller and mdistiller train hint and cross-entropy together (default);
torchdistill sums over all elements with weight 1 at stage 1 (`reduction: sum`, `layer: 1`), the others average with
weight 100 at stage 2. All end the regressor in a ReLU, which cannot match a teacher whose map is signed, such as a
wide ResNet's: `relu: false`, as the argument `use_relu` of RepDistiller's `ConvReg` has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.cards import Layer, ModelCard
from otkd.core.config import StrictModel, TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, Stage, TermLoss
from otkd.ot.precision import widen


class HintStage(StrictModel):
    """A stage before the main one in which the hint alone is trained."""

    epochs: PositiveInt
    """Epochs of the stage."""
    lr: PositiveFloat
    """Its constant learning rate."""


class Config(TermConfig):
    """Hints from a feature map."""

    weight: NonNegativeFloat = 100.0
    """Factor of this term in the weighted sum."""
    layer: Layer = 2
    """Feature map of both networks: an index (0 is the stem) or a name."""
    relu: bool = True
    """End the regressor in a ReLU; off for teachers whose maps are signed."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over all elements, the batch included."""
    stages: HintStage | None = None
    """Train the hint before the main stage, where it then takes no part; none trains it along with the other terms."""

    @property
    def in_training(self) -> bool:
        """Unless it has a stage of its own."""
        return self.stages is None

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the layer is missing, a vector, or so much smaller in the student that no regressor helps."""
        yield from super().check(student, teacher)
        if self.layer in ("embedding", "logits"):
            yield Problem(
                "layer", f"a hint is a feature map, {self.layer} is a vector; there is {', '.join(student.taps)}."
            )
        elif teacher is not None and not list(super().check(student, teacher)):
            stride_s, stride_t = (card.stride(self.layer) for card in (student, teacher))
            if stride_s > 2 * stride_t:
                yield Problem(
                    "layer",
                    f"the student's map is {stride_s} times smaller than the image, the teacher's {stride_t} times; a "
                    "regressor doubles a map at most. Choose another layer.",
                )


class Loss(TermLoss):
    """Squared difference between the regressed student's and the teacher's map (B, C, H, W)."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        if probe.teacher is None:
            raise OtkdError("fitnet takes its hint from a teacher, and there is none")
        self.config = config
        map_s, map_t = probe.student.layer(config.layer), probe.teacher.layer(config.layer)
        self.regressor = _regressor(map_s, map_t, config.relu)

    @property
    def stages(self) -> tuple[Stage, ...]:
        hint = self.config.stages
        return (Stage("hint", hint.epochs, hint.lr),) if hint else ()

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        map_s_BCHW = self.regressor(out_s.layer(self.config.layer))
        map_t_BCHW = out_t.layer(self.config.layer).detach()
        return LossOutput(F.mse_loss(widen(map_s_BCHW), widen(map_t_BCHW), reduction=self.config.reduction))


def _regressor(map_s: Tensor, map_t: Tensor, relu: bool) -> nn.Module:
    """Convolution, batch norm and, if asked, ReLU from the student's (B, C, H, W) to the teacher's."""
    if map_s.dim() != 4 or map_t.dim() != 4:
        raise OtkdError(f"a hint is a feature map (B, C, H, W); got {tuple(map_s.shape)} and {tuple(map_t.shape)}")
    layers = [_resize(map_s, map_t), nn.BatchNorm2d(map_t.shape[1])]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


def _resize(map_s: Tensor, map_t: Tensor) -> nn.Module:
    """RepDistiller's rule of sizes: halve, double, or a valid convolution over what the student's map is larger by."""
    (channels_s, h_s, w_s), (channels_t, h_t, w_t) = map_s.shape[1:], map_t.shape[1:]
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        return nn.Conv2d(channels_s, channels_t, 3, stride=2, padding=1)
    if (2 * h_s, 2 * w_s) == (h_t, w_t):
        return nn.ConvTranspose2d(channels_s, channels_t, 4, stride=2, padding=1)
    if h_s >= h_t and w_s >= w_t:
        return nn.Conv2d(channels_s, channels_t, (1 + h_s - h_t, 1 + w_s - w_t))
    raise OtkdError(
        f"fitnet cannot bring the student's map of {h_s} × {w_s} to the teacher's {h_t} × {w_t}: it halves, doubles, "
        "or cuts a larger map to size. Choose another layer."
    )
