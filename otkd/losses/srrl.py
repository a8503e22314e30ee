"""SRRL: softmax regression representation learning (Yang, Martinez, Bulat & Tzimiropoulos, ICLR 2021, Sec. 3).

The student's pooled vector h_s goes through a connector T, a bias-free linear map, batch norm and ReLU, to the width
of the teacher's h_t. It is to equal h_t, and to make the teacher's frozen classifier (W, b) say what the teacher says:
MSE(T(h_s), h_t) + MSE(W T(h_s) + b, z_t), means over all elements, of equal weight as in the article.

This is the form that SimKD's release compares with; it adds cross-entropy and knowledge distillation (`kd`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import BatchNorm2d, teacher_of
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """The student's pooled vector, judged by the teacher's and by the teacher's classifier."""


class Loss(TermLoss):
    """Squared distances of the connected pooled vectors (B, D) and of the teacher's classifier on them (B, K)."""

    classifier_t_KD: Tensor
    bias_t_K: Tensor

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        width_s, width_t = (out.embedding.shape[1] for out in (probe.student, teacher_of("srrl", probe)))
        if probe.classifier_t is None or probe.bias_t is None:
            raise OtkdError(
                "srrl reads the teacher's classifier: `Probe.classifier_t` and `Probe.bias_t`. "
                "Choose a teacher that ends in a linear layer with a bias"
            )
        convolution = nn.Conv2d(width_s, width_t, 1, bias=False)
        self.connector = nn.Sequential(convolution, BatchNorm2d(width_t), nn.ReLU(), nn.Flatten())
        self.register_buffer("classifier_t_KD", probe.classifier_t.detach().clone(), persistent=False)
        self.register_buffer("bias_t_K", probe.bias_t.detach().clone(), persistent=False)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.embedding):
            connected_BD = self.connector(widen(out_s.embedding)[:, :, None, None])
            said_BK = F.linear(connected_BD, self.classifier_t_KD, self.bias_t_K)
            features = F.mse_loss(connected_BD, widen(out_t.embedding.detach()))
            logits = F.mse_loss(said_BK, widen(out_t.logits.detach()))
        return LossOutput(features + logits, {"features": features.detach(), "logits": logits.detach()})
