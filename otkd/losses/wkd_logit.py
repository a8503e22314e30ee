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
- the article takes all training images, here at most `images` of each class are compared: all of CIFAR-100's;
- the weight of the transport part falls to 0 along a cosine, on CIFAR-100 from epoch 150; here it is constant;
- weights and temperatures are those of resnet32x4 → resnet8x4 on CIFAR-100. WRN-40-2 → ShuffleV1: 200, T 6. ImageNet:
  ResNet34 → ResNet18 30, T 2; ResNet50 → MobileNetV1 25, T 2, κ 2.

Until `prepare` has seen the teacher's features, the cost is the classifier's, or 1 between any two classes where the
classifier is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
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
    epsilon: Annotated[float, Field(ge=0.02)] = 0.05
    """Entropic strength, in units of the ground cost, which is below 1."""
    iterations: PositiveInt = 10
    """Sinkhorn iterations, each one update of both scalings; always as many."""
    gradient: Literal["unrolled", "envelope"] = "unrolled"
    """Through the iterations, as the authors, or with the potentials held fixed, as the other terms here."""

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
        if config.cost == "classifier" and probe.classifier_t is None:
            raise OtkdError(
                "wkd_logit.cost: classifier takes the weights of the teacher's last linear layer, and this teacher has "
                "none; use cka"
            )
        self.register_buffer("cost_KK", sharpened(_first_cost(probe), config.sharpness))

    @property
    def needs_preparation(self) -> bool:  # type: ignore[override]
        """Only CKA looks at the training images."""
        return self.config.cost == "cka"

    @torch.no_grad()
    def prepare(self, outputs: Iterable[tuple[Batch, ModelOutput]]) -> None:
        features_KND, count_K = _by_class(outputs, self.config, len(self.cost_KK))
        self.cost_KK.copy_(sharpened(cka_cost(features_KND, count_K), self.config.sharpness))

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.logits):
            logits_s_BK, logits_t_BK = widen(out_s.logits), widen(out_t.logits.detach())
            target = _target(logits_s_BK, logits_t_BK, batch.target)
            true_BK = F.one_hot(batch.target, logits_s_BK.shape[-1]).bool()
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


def _by_class(outputs: Iterable[tuple[Batch, ModelOutput]], config: Config, classes: int) -> tuple[Tensor, Tensor]:
    """Features (K, N, D) of each class' first images in order, zeros behind them, and the number of samples (K,)."""
    images_MPD, label_M = _first_images(outputs, config)
    count_K = torch.bincount(label_M, minlength=classes)
    features_KNPD = images_MPD.new_zeros(classes, int(count_K.max()), *images_MPD.shape[1:])
    order = label_M.argsort(stable=True)
    place_M = torch.arange(len(order), device=order.device) - (count_K.cumsum(0) - count_K)[label_M[order]]
    features_KNPD[label_M[order], place_M] = images_MPD[order]
    return features_KNPD.flatten(1, 2), count_K * images_MPD.shape[1]


def _first_images(outputs: Iterable[tuple[Batch, ModelOutput]], config: Config) -> tuple[Tensor, Tensor]:
    """Features (M, P, D) of at most `images` images of each class, P positions each, and their labels (M,)."""
    taken: Counter[int] = Counter()
    pieces, labels = [], []
    for batch, out_t in outputs:
        chosen = []
        for row, label in enumerate(batch.target.tolist()):
            taken[label] += 1
            if taken[label] <= config.images:
                chosen.append(row)
        tap = widen(out_t.layer(config.layer)[chosen])
        pieces.append(tap.flatten(2).mT if tap.dim() == 4 else tap[:, None])
        labels.append(batch.target[chosen])
    return torch.cat(pieces), torch.cat(labels)
