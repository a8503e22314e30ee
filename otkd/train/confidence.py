"""How well the probabilities of a network can be trusted, and how far they are from its teacher's, on test images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from otkd.core import names
from otkd.train.distributed import Group

BINS = 15
"""Intervals of confidence, equally wide (Guo et al., ICML 2017, arXiv 1706.04599)."""


class Confidence:
    """Collects in the pass that measures accuracy, on the device; nothing waits for it before `figures`.

    Args:
        logits_t_NK: the teacher's, for the images of this process's shard in order; None for a network without teacher.
    """

    def __init__(self, logits_t_NK: Tensor | None, device: torch.device) -> None:
        self._logits_t_NK = logits_t_NK
        self._seen = 0
        self._gaps = torch.zeros(BINS, dtype=torch.float64, device=device)
        """Per interval: images with their class first, less the sum of their confidences."""
        self._divergence = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, target_B: Tensor, taken_B: Tensor, logits_BK: Tensor) -> None:
        """Take a batch: its classes, those that the network takes it for, and its logits."""
        log_BK = F.log_softmax(logits_BK.double(), dim=1)
        confidence_B = log_BK.max(dim=1).values.exp()
        bin_B = (confidence_B * BINS).ceil().long().sub(1).clamp(0, BINS - 1)  # an interval holds its upper end
        self._gaps.index_add_(0, bin_B, (taken_B == target_B).double() - confidence_B)
        if self._logits_t_NK is not None:
            logits_t_BK = self._logits_t_NK[self._seen : self._seen + len(target_B)].to(logits_BK.device)
            log_t_BK = F.log_softmax(logits_t_BK.double(), dim=1)
            self._divergence += F.kl_div(log_BK, log_t_BK, reduction="sum", log_target=True)
        self._seen += len(target_B)

    def figures(self, group: Group) -> dict[str, float]:
        """Over the images of all processes, each of which has to call this.

        Returns:
            `ece`, the expected calibration error in percent: |share right - mean confidence| of each interval, weighted
            by its images; and, with a teacher, `kl`, the mean of KL(teacher's probabilities ‖ the network's) in nats,
            both at temperature 1.
        """
        own = [*self._gaps.tolist(), self._divergence.item(), float(self._seen)]
        *gaps, divergence, images = group.mean_over_ranks(own)
        figures = {names.TEST_ECE: 100 * sum(map(abs, gaps)) / images}
        if self._logits_t_NK is not None:
            figures[names.TEST_KL] = divergence / images
        return figures
