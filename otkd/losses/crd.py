"""CRD: contrastive representation distillation (Tian, Krishnan & Isola, ICLR 2020, Sec. 3.1 and 3.2).

Linear maps bring both networks' embeddings to `width` dimensions and to length 1: u for the student, v for the teacher.
Two banks M_S, M_T (N, width) remember every training image. For image i and K images k of other classes,
P_S(k) = exp(⟨u, M_T[k]⟩/τ)/Z_S, P_T(k) = exp(⟨v, M_S[k]⟩/τ)/Z_T, and with a = K/N
ℓ(P) = −log P(i)/(P(i) + a + ε) − Σ_k log a/(P(k) + a + ε), mean over the batch (noise-contrastive estimation).
The loss is ℓ(P_S) + ℓ(P_T). Z is N times the mean of the exponentials in the first batch, fixed from then on. After the
loss the batch's rows become the normalised mean, by `momentum`, of what they were and the new embedding.

As in the authors' release (RepDistiller, `--mode exact`) but for the negatives. There each image has a list of its own,
drawn without replacement by the data loader; here they are drawn with replacement, so K may exceed the number of images
of other classes, and out of a pool: all images up to N = 4K, beyond that 4K drawn anew in each step, one out of each of
4K equal stretches of all images in the order of their classes (an image at the end of a stretch may come twice).
torchdistill draws among all images, the image itself included, unless it is given a list.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError
from otkd.core.output import Batch, ModelOutput
from otkd.core.seeds import derive
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.draws import uniform
from otkd.losses.maps import teacher_of
from otkd.ot.precision import full_precision, widen

EPS = 1e-7
"""ε of the release."""
POOL = 4
"""Images of a pool for each negative that is drawn."""


class Config(TermConfig):
    """Contrast of each image's embeddings with those of images of other classes."""

    weight: NonNegativeFloat = 0.8
    """Factor of this term in the weighted sum."""
    negatives: PositiveInt = 16384
    """K, images of other classes that each image is contrasted with; drawn with replacement."""
    temperature: PositiveFloat = 0.07
    """τ, by which the cosines are divided."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share that an image's row in the banks keeps when the image is seen again."""
    width: PositiveInt = 128
    """Dimensions in which embeddings are compared."""

    @property
    def one_label(self) -> bool:
        """Negatives are images of other classes."""
        return True


class Draw(NamedTuple):
    """Which rows of the banks a batch is compared with."""

    own_B: Tensor
    """Those of its images."""
    pool_P: Tensor | None
    """Those that negatives are drawn from, ascending; None for all."""
    negative_BK: Tensor
    """Positions in the pool."""


class Loss(TermLoss):
    """Noise-contrastive estimation between both networks' embeddings (B, D) and the banks."""

    labels_N: Tensor
    row_N: Tensor
    """Row of each image in the banks, which are ordered by class."""
    ends_C: Tensor
    """First row of each class, and N."""
    bank_s: Tensor
    bank_t: Tensor
    log_z: Tensor
    """log Z_S and log Z_T."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config
        width_s, width_t = probe.student.embedding.shape[1], teacher_of("crd", probe).embedding.shape[1]
        self.embed_s, self.embed_t = nn.Linear(width_s, config.width), nn.Linear(width_t, config.width)
        self._sort(probe)
        bound = math.sqrt(3 / config.width)
        for name in ("bank_s", "bank_t"):
            self.register_buffer(name, torch.empty(len(self.labels_N), config.width).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.zeros(2))
        self._seed, self._step = int(torch.randint(2**31, ())), 0

    def _sort(self, probe: Probe) -> None:
        """Give the images of a class neighbouring rows, so that leaving one out is leaving out a block."""
        if probe.labels_N is None:
            raise OtkdError("crd draws images of other classes; it needs the labels of all training images (labels_N)")
        labels_N = probe.labels_N.detach().cpu().long()
        count_C = torch.bincount(labels_N, minlength=probe.classes)
        self._check_others(len(labels_N), int(count_C.max()) if len(labels_N) else 0)
        known = {
            "labels_N": labels_N,
            "row_N": labels_N.argsort(stable=True).argsort(),
            "ends_C": F.pad(count_C.cumsum(0), (1, 0)),
        }
        for name, tensor in known.items():
            self.register_buffer(name, tensor, persistent=False)

    def _check_others(self, images: int, largest: int) -> None:
        """Refuse classes beside which a pool may hold no other image."""
        self._pool_size = min(images, POOL * self.config.negatives)
        fewest = 1 if self._pool_size == images else 2 * images / self._pool_size
        if images - largest < fewest:
            raise OtkdError(
                f"crd draws images of other classes; of {images} training images {largest} are of one class, which "
                f"leaves too few for negatives: {self.config.negatives}. Use more classes or more negatives."
            )

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.embedding):
            u_BD = F.normalize(self.embed_s(widen(out_s.embedding)), dim=-1)
            v_BD = F.normalize(self.embed_t(widen(out_t.embedding.detach())), dim=-1)
            draw = self._draw(batch.indices)
            value_s = self._contrast(u_BD, self.bank_t, draw, 0)
            value_t = self._contrast(v_BD, self.bank_s, draw, 1)
            if self.training:
                self._update(self.bank_s, u_BD.detach(), draw.own_B)
                self._update(self.bank_t, v_BD.detach(), draw.own_B)
                self._step += 1
        return LossOutput(value_s + value_t, {"student": value_s.detach(), "teacher": value_t.detach()})

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps, which the draws follow; after the first Z is known."""
        return {"step": self._step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Read it back."""
        self._step = state["step"]

    @torch.no_grad()
    def _draw(self, indices_B: Tensor) -> Draw:
        """Skip the block of an image's own class: positions from its beginning on move up by its length."""
        own_B, class_B = self.row_N[indices_B], self.labels_N[indices_B]
        pool_P, begin_B, end_B = self._pool(), self.ends_C[class_B], self.ends_C[class_B + 1]
        if pool_P is not None:
            begin_B, end_B = torch.searchsorted(pool_P, begin_B), torch.searchsorted(pool_P, end_B)
        block_B1, begin_B1 = (end_B - begin_B)[:, None], begin_B[:, None]
        drawn_BK = uniform(self._seed, self._step, indices_B, self.config.negatives)
        position_BK = drawn_BK.mul_(self._pool_size - block_B1).long()
        return Draw(own_B, pool_P, position_BK.add_((position_BK >= begin_B1) * block_B1))

    def _pool(self) -> Tensor | None:
        """One row out of each of P equal stretches, where the pool is not everyone."""
        images, size = len(self.labels_N), self._pool_size
        if size == images:
            return None
        zero_1 = self.row_N.new_zeros(1)
        offset_P = uniform(derive(self._seed, "pool"), self._step, zero_1, size)[0]
        stretch_P = torch.arange(size, device=zero_1.device, dtype=torch.float64)
        return ((stretch_P + offset_P) * (images / size)).long()

    def _contrast(self, x_BD: Tensor, bank_ND: Tensor, draw: Draw, side: int) -> Tensor:
        """ℓ(P) of one side's embeddings against the other side's bank."""
        with torch.no_grad():
            pool_PD = bank_ND if draw.pool_P is None else bank_ND.index_select(0, draw.pool_P)
            scores = _Scores(x_BD, bank_ND[draw.own_B], pool_PD, draw.negative_BK, self.config.temperature)
            log_z = self._log_z(scores, side)
            value, gradient_BD = scores.contrast(log_z, self.config.negatives / len(bank_ND))
        linked: Tensor = _Linked.apply(x_BD, value, gradient_BD)
        return linked

    def _log_z(self, scores: _Scores, side: int) -> Tensor:
        """The normalisation of the first batch, which the first training step keeps."""
        if self._step:
            return self.log_z[side]
        log_z = scores.log_mean_exp() + math.log(len(self.labels_N))
        if self.training:
            self.log_z[side] = log_z
        return log_z

    @torch.no_grad()
    def _update(self, bank_ND: Tensor, x_BD: Tensor, own_B: Tensor) -> None:
        mixed_BD = torch.lerp(x_BD.to(bank_ND), bank_ND[own_B], self.config.momentum)
        bank_ND.index_copy_(0, own_B, F.normalize(mixed_BD, dim=-1))


class _Scores:
    """⟨x, M[k]⟩/τ for each image's own row and its negatives: one product with the pool, then a look-up."""

    def __init__(self, x_BD: Tensor, own_BD: Tensor, pool_PD: Tensor, negative_BK: Tensor, tau: float) -> None:
        self.own_BD, self.pool_PD, self.negative_BK, self.tau = own_BD, pool_PD, negative_BK, tau
        self.product_BP = x_BD @ pool_PD.mT
        self.own_B = (x_BD * own_BD).sum(-1) / tau
        self.others_BK = self.product_BP.gather(1, negative_BK).div_(tau)

    def log_mean_exp(self) -> Tensor:
        """Over all images, own rows included."""
        sums_B = torch.logaddexp(self.own_B, self.others_BK.logsumexp(1))
        return sums_B.logsumexp(0) - math.log(self.own_B.numel() + self.others_BK.numel())

    def contrast(self, log_z: Tensor, a: float) -> tuple[Tensor, Tensor]:
        """ℓ(P) and its gradient in x; the scores are used up.

        With l = log P/(a + ε): P/(P + a + ε) = σ(l), a/(P + a + ε) = σ(−l) a/(a + ε).
        """
        shift, images = log_z + math.log(a + EPS), len(self.own_B)
        own_B, others_BK = self.own_B - shift, self.others_BK.sub_(shift)
        value_B = F.softplus(-own_B) + F.softplus(others_BK).sum(1) + others_BK.shape[1] * math.log1p(EPS / a)
        pull_B1 = torch.sigmoid(-own_B)[:, None]
        push_BP = self.product_BP.zero_().scatter_add_(1, self.negative_BK, others_BK.sigmoid_())
        gradient_BD = torch.addmm(pull_B1 * self.own_BD, push_BP, self.pool_PD, beta=-1)
        return value_B.mean(), gradient_BD / (self.tau * images)


class _Linked(torch.autograd.Function):
    """A value whose gradient is known already, so that the banks may change before the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, value: Tensor, gradient_BD: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_BD)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient_BD,) = ctx.saved_tensors
        return grad * gradient_BD, None, None
