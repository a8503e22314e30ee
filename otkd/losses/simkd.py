"""SimKD: the reused teacher classifier (Chen, Mei, Zhang, Wang, Feng & Chen, CVPR 2022, Sec. 3).

A projector P of 1 × 1, 3 × 3 and 1 × 1 convolutions, each with batch norm and ReLU and `factor` times narrower within
than the teacher's last map t, brings the student's last map to it: mean squared error of P(f) and t, after t's ReLU.
The larger map is average-pooled to the smaller before the projector. There is no cross-entropy in the published
objective: the term stands alone. A term on logits beside it would train the student's own classifier, which is not
deployed.

What is deployed is the student, the projector and the teacher's classifier on the projected map's mean; projector and
classifier count as its parameters. The student's own classifier stays in it, without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import pools_last
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import BatchNorm2d, same_size, teacher_of
from otkd.ot.precision import widen


class Config(TermConfig):
    """The student's last map, projected, against the teacher's, whose classifier is reused."""

    factor: PositiveInt = 2
    """How many times narrower than the teacher's last map the projector is within."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the teacher's classifier does not read its last map, or the projector would have no width."""
        yield from super().check(student, teacher)
        yield from pools_last(teacher)
        if teacher is not None and self.factor > teacher.channels[-1]:
            yield Problem("factor", f"the teacher's last map has {teacher.channels[-1]} channels; take fewer.")


class Loss(TermLoss):
    """Mean squared error of the projected and the teacher's last map after its ReLU."""

    classifier_t_KD: Tensor
    bias_t_K: Tensor

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        map_s, map_t = probe.student.features[-1], _target(teacher_of("simkd", probe))
        _check(config, probe, map_t.shape[1])
        self.projector = Projector(map_s.shape[1], map_t.shape[1], config.factor, map_t.shape[2:])
        for name, given in (("classifier_t_KD", probe.classifier_t), ("bias_t_K", probe.bias_t)):
            self.register_buffer(name, torch.as_tensor(given).detach().clone())

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        map_s_BCHW = F.relu(self.projector(out_s.features[-1]))
        _, map_t_BCHW = same_size(map_s_BCHW, _target(out_t).detach())
        return LossOutput(F.mse_loss(widen(map_s_BCHW), widen(map_t_BCHW)))

    def deployed(self, model: nn.Module) -> nn.Module:
        return Network(model, self.projector, self.classifier_t_KD, self.bias_t_K)


class Projector(nn.Module):
    """From the student's last map to the teacher's (B, D, H, W), before the last ReLU.

    Args:
        width_s: channels of the student's map.
        width_t: D.
        factor: how many times narrower than D it is within.
        size: height and width of the teacher's map, which a larger student's map is pooled to.
    """

    def __init__(self, width_s: int, width_t: int, factor: int, size: torch.Size) -> None:
        super().__init__()
        width, self.size = width_t // factor, tuple(size)
        self.register_buffer("size_2", torch.tensor(self.size))
        self.layers = nn.Sequential(
            nn.Conv2d(width_s, width, 1, bias=False),
            BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width_t, 1, bias=False),
            BatchNorm2d(width_t),
        )

    def forward(self, map_BCHW: Tensor) -> Tensor:
        (height, width), (height_t, width_t) = map_BCHW.shape[2:], self.size
        pooled = F.adaptive_avg_pool2d(map_BCHW, (min(height, height_t), min(width, width_t)))
        projected: Tensor = self.layers(pooled)
        return projected


class Network(nn.Module):
    """Student, projector and the teacher's classifier. Shares all weights with what it is made of.

    The projected map stands in the place of the student's last stage.

    Args:
        student: the network in training.
        projector: the term's.
        weight_KD: of the teacher's last linear layer.
        bias_K: its bias.
    """

    def __init__(self, student: nn.Module, projector: Projector, weight_KD: Tensor, bias_K: Tensor) -> None:
        super().__init__()
        self.student, self.projector = student, projector
        self.weight, self.bias = (nn.Parameter(given, requires_grad=False) for given in (weight_KD, bias_K))
        self.training = student.training

    def forward(self, image: Tensor) -> ModelOutput:
        """Classify `image` (B, C, H, W) with the teacher's classifier."""
        out: ModelOutput = self.student(image)
        preact_BDHW = self.projector(out.features[-1])
        map_BDHW = F.relu(preact_BDHW)
        embedding_BD = map_BDHW.mean((2, 3))
        logits_BK = F.linear(embedding_BD, self.weight, self.bias)
        preacts = (*out.preacts[:-1], preact_BDHW) if out.preacts else ()
        return ModelOutput(logits_BK, embedding_BD, (*out.features[:-1], map_BDHW), preacts, out.taps)


def rebuild(student: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The deployed network round `student`, to be filled with its `weights`; see `otkd.train.restore`."""
    (width, width_s), (classes, width_t) = weights["projector.layers.0.weight"].shape[:2], weights["weight"].shape
    size = torch.Size(weights["projector.size_2"].tolist())
    projector = Projector(width_s, width_t, width_t // width, size)
    return Network(student, projector, torch.zeros(classes, width_t), torch.zeros(classes))


def _target(out: ModelOutput) -> Tensor:
    """What the teacher pools: its last stage after the ReLU, whether or not `features` has it signed."""
    return F.relu(out.preacts[-1]) if out.preacts else out.features[-1]


def _check(config: Config, probe: Probe, width_t: int) -> None:
    if probe.classifier_t is None or probe.bias_t is None:
        raise OtkdError(
            "simkd reuses the teacher's classifier: `Probe.classifier_t` and `Probe.bias_t`. "
            "Choose a teacher that ends in a linear layer with a bias"
        )
    if probe.classifier_t.shape[1] != width_t:
        raise OtkdError(
            f"simkd reads the teacher's classifier, of {probe.classifier_t.shape[1]} inputs, on its last stage, which "
            f"has {width_t} channels. Choose a teacher without a layer between them"
        )
    if config.factor > width_t:
        raise OtkdError(f"simkd.factor: {config.factor} leaves a projector to {width_t} channels no width")
