"""WKD-L: transport between the classes' probabilities (Lv, Yang & Li, NeurIPS 2024, "Wasserstein Distance Rivals
Kullback-Leibler Divergence for Knowledge Distillation", Sec. 3.1).

L = `target` · L_t + `transport` · L_w, mean over the batch. L_t = −p_t(y) log p_s(y) for the true class y, at
temperature 1. L_w is the entropic transport cost between the two softened predictions over the other classes, at a
ground cost of 1 − exp(−κ (1 − similarity)) between two classes; similarity is the linear CKA of the teacher's features
of their training images, or the cosine of the teacher's classifier rows. No T².

The true class keeps its row and column and has no mass: the numbers are those of removing it, all images share one
kernel K = exp(−D/ε), and Sinkhorn's iteration is a product of (B, K) and (K, K); nothing of size B × K × K is made.

Disagreements of the authors' release:
- its iterations are unrolled, and the value is ⟨P, D⟩ after ten of them, where the columns still miss their marginals
  (`marginal_error`). That is the default. `gradient: envelope` takes the potential of the student's side, the
  derivative of the entropic value once that has converged: give it more `iterations`;
- it adds 1e-8 to the costs and to each divisor, and here nothing is added;
- the article compares features of images (`layer: embedding`). The release takes each position of the last map as a
  sample on CIFAR-100 (`layer: stage3`, say) and logits on ImageNet (`layer: logits`);
- the article takes all training images, here at most `images` of each class are compared: all of CIFAR-100's; and the
  release takes all positions, here at most `side`² of each image: those of an 8 × 8 map would take minutes on a CPU;
- the weight of the transport part falls to 0 along a cosine, on CIFAR-100 from epoch 150; here it is constant;
- weights and temperatures are those of resnet32x4 → resnet8x4 on CIFAR-100. WRN-40-2 → ShuffleV1: 200, T 6. ImageNet:
  ResNet34 → ResNet18 30, T 2; ResNet50 → MobileNetV1 25, T 2, κ 2.

Until `prepare`, the cost is the classifier's, or 1 between any two classes where the classifier is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from otkd.core.cards import Layer, ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.ot.cost import cka_cost, classifier_cosine, sharpened
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """Transport between the classes' probabilities, at costs from the teacher's similarities of classes."""

    target: NonNegativeFloat = 1.0
    """Factor of the true class' part within the term."""
    transport: NonNegativeFloat = 600.0
    """Factor of the other classes' part within the term."""
    temperature: PositiveFloat = 8.0
    """T, by which both networks' logits are divided in the other classes' part."""
    cost: Literal["cka", "classifier"] = "cka"
    """Similarity of classes: linear CKA of the teacher's features, or cosine of its classifier's rows."""
    sharpness: PositiveFloat = 1.0
    """κ of the ground cost 1 − exp(−κ (1 − similarity))."""
    layer: Layer = "embedding"
    """Layer of the teacher whose features `cka` compares; of a map, each position is a sample."""
    images: PositiveInt = 500
    """Images of each class that `cka` compares, at most."""
    side: PositiveInt = 4
    """Positions of a map that `cka` compares, on each side, evenly spread, at most."""
    epsilon: Annotated[float, Field(ge=0.02)] = 0.05
    """Entropic strength, in units of the ground cost, which is below 1."""
    iterations: PositiveInt = 10
    """Sinkhorn iterations, each one update of both scalings; always as many."""
    gradient: Literal["unrolled", "envelope"] = "unrolled"
    """Through the iterations, as the authors, or with the potentials held fixed, as the other terms here."""

    @property
    def one_label(self) -> bool:
        """The true class keeps its mass."""
        return True

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the teacher, whose features alone are compared, lacks the layer."""
        if teacher is not None:
            yield from teacher.check_layer(self.layer)


class Loss(TermLoss):
    """The true class' cross-entropy and the transport between the others', weighted, mean over the batch."""

    cost_KK: Tensor

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config
        self.needs_preparation = config.cost == "cka"
        if config.cost == "classifier" and probe.classifier_t is None:
            raise OtkdError(
                "wkd_logit.cost: classifier takes the weights of the teacher's last linear layer, and this teacher has "
                "none; use cka"
            )
        self.register_buffer("cost_KK", sharpened(_first_cost(probe), config.sharpness))
        self._samples: Samples | None = None

    @torch.no_grad()
    def observe(self, batch: Batch, out_t: ModelOutput) -> None:
        tap_BPD = _positions(widen(out_t.layer(self.config.layer)), self.config.side)
        if self._samples is None:
            self._samples = Samples(tap_BPD, len(self.cost_KK), self.config.images)
        self._samples.add(tap_BPD, batch.target)

    @torch.no_grad()
    def prepare(self) -> None:
        samples, self._samples = self._samples, None
        if samples is not None:
            cost_KK = cka_cost(samples.features_KIPD.flatten(1, 2), samples.count_K * samples.features_KIPD.shape[2])
            self.cost_KK.copy_(sharpened(cost_KK, self.config.sharpness))

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.logits):
            logits_s_BK, logits_t_BK = widen(out_s.logits), widen(out_t.logits.detach())
            target = _target(logits_s_BK, logits_t_BK, batch.target)
            true_BK = F.one_hot(batch.target, logits_s_BK.shape[-1]).bool()
            true_BK &= true_BK.shape[-1] > 1  # the only class there is keeps its mass, which has nowhere to go
            a_BK, b_BK = (
                torch.softmax((logits_BK / self.config.temperature).masked_fill(true_BK, -torch.inf), -1)
                for logits_BK in (logits_s_BK, logits_t_BK)
            )
            cost_B, error_B = transport_cost(a_BK, b_BK, self.cost_KK.to(a_BK.dtype), ~true_BK, self.config)
        transport = cost_B.mean()
        parts = {"target": target.detach(), "transport": transport.detach(), "marginal_error": error_B.max()}
        return LossOutput(self.config.target * target + self.config.transport * transport, parts)


def transport_cost(
    a_BK: Tensor, b_BK: Tensor, cost_KK: Tensor, open_BK: Tensor, config: Config
) -> tuple[Tensor, Tensor]:
    """⟨P, D⟩ and the columns' L1 marginal error of each image's plan P = diag(u) K diag(v); rows are exact.

    Args:
        a_BK: the student's probabilities, 0 where a class is not open.
        b_BK: the teacher's.
        cost_KK: D.
        open_BK: classes that take part.
        config: strength, iterations, gradient.
    """
    kernel_KK = torch.exp(-cost_KK / config.epsilon)  # at least exp(−50), so that no divisor is 0
    with torch.set_grad_enabled(torch.is_grad_enabled() and config.gradient == "unrolled"):
        u_BK = open_BK / open_BK.sum(-1, keepdim=True).to(a_BK.dtype)
        for _ in range(config.iterations):
            v_BK = b_BK / (u_BK @ kernel_KK)
            reach_BK = v_BK @ kernel_KK.mT
            u_BK = a_BK / reach_BK
        value_B = (u_BK * (v_BK @ (cost_KK * kernel_KK).mT)).sum(-1)
    error_B = (v_BK * (u_BK @ kernel_KK) - b_BK).detach().abs().sum(-1)
    if config.gradient == "envelope":
        # f = −ε log K v is the derivative in a of ⟨P, D⟩ + ε KL(P | a⊗b), as `otkd.ot.sinkhorn` has it
        lever_B = (a_BK * (-config.epsilon * reach_BK.log()).masked_fill(~open_BK, 0)).sum(-1)
        value_B = value_B + (lever_B - lever_B.detach())
    return value_B, error_B


def _target(logits_s_BK: Tensor, logits_t_BK: Tensor, target_B: Tensor) -> Tensor:
    log_s_B = F.log_softmax(logits_s_BK, -1).gather(1, target_B[:, None])
    return -(torch.softmax(logits_t_BK, -1).gather(1, target_B[:, None]) * log_s_B).mean()


def _first_cost(probe: Probe) -> Tensor:
    if probe.classifier_t is not None:
        return classifier_cosine(probe.classifier_t.detach())
    return 1 - torch.eye(probe.classes, device=probe.student.logits.device)


class Samples:
    """Features of each class' first images in order.

    Args:
        like_BPD: features of some images, for their shape and type.
        classes: K.
        images: I, images of each class that are kept at most.
    """

    def __init__(self, like_BPD: Tensor, classes: int, images: int) -> None:
        self.features_KIPD = like_BPD.new_empty(classes, images, *like_BPD.shape[1:])
        """Nothing is promised of what lies behind a class' images."""
        self.count_K = torch.zeros(classes, dtype=torch.long, device=like_BPD.device)
        """Images of each class that are kept."""

    def add(self, features_BPD: Tensor, label_B: Tensor) -> None:
        """Keep what there is room for."""
        classes, images = self.features_KIPD.shape[:2]
        hit_BK = F.one_hot(label_B, classes)
        place_B = (self.count_K + hit_BK.cumsum(0)).gather(1, label_B[:, None])[:, 0] - 1
        kept_B = place_B < images
        self.features_KIPD[label_B[kept_B], place_B[kept_B]] = features_BPD[kept_B]
        self.count_K = (self.count_K + hit_BK.sum(0)).clamp_max(images)


def _positions(tap: Tensor, side: int) -> Tensor:
    """A layer's features (B, P, D): one sample of a vector, or a map's at most `side` × `side` positions."""
    if tap.dim() != 4:
        return tap[:, None]
    for dim in (2, 3):
        size = tap.shape[dim]
        if size > side:
            tap = tap.index_select(dim, (2 * torch.arange(side, device=tap.device) + 1) * size // (2 * side))
    return tap.flatten(2).mT
