"""Accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core import names
from otkd.core.output import ModelOutput
from otkd.data.batches import Batches
from otkd.train.distributed import Group

EVAL_BATCH = 250
"""Images at a time; with 500, their maps are what a trial on a CPU needs most memory for."""


def best_five(logits_BK: Tensor) -> Tensor:
    """The classes (B, 5) with the largest logits, the largest first; fewer where there are fewer."""
    return logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices


def hits(best_B5: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the batch have their class first, and anywhere among the best (on the device)."""
    hit_B5 = best_B5 == target_B[:, None]
    return hit_B5[:, 0].sum(), hit_B5.sum()


class Look(Protocol):
    """Collects something else in the pass that measures accuracy."""

    def add(self, target_B: Tensor, taken_B: Tensor, logits_BK: Tensor) -> None:
        """Take a batch, in order: its classes, those that the network takes it for, and its logits."""


def classes(logits_BK: Tensor) -> Tensor:
    """The class (B,) with the largest logit."""
    return logits_BK.argmax(1)


@torch.inference_mode()
def predictions(
    network: Callable[[Tensor], ModelOutput], batches: Batches, of: Callable[[Tensor], Tensor] = classes
) -> Tensor:
    """What is kept `of` the logits of every image in order (N, ...)."""
    own = (batch for batch in batches.ordered(EVAL_BATCH) if len(batch.target))
    return torch.cat([of(network(batch.image).logits) for batch in own])


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    dtype: torch.dtype | None,
    answers_N: Tensor | None,
    group: Group | None = None,
    looks: Sequence[Look] = (),
) -> dict[str, float]:
    """Loss (cross-entropy), top-1 and top-5 in percent, and top-1 agreement with `answers_N` in percent, if given.

    Leaves the model in eval mode.

    Args:
        answers_N: classes, for the images of this process's shard.
        group: the processes that share the images; each measures its shard, and all get the figures of all images.
        looks: are shown every batch.
    """
    device = batches.device
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    seen = 0
    for batch in batches.ordered(EVAL_BATCH):
        if not len(batch.target):  # a shard of a last batch with fewer images than processes
            continue
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits_BK = model(batch.image).logits.float()
        size = len(batch.target)
        sums[0] += F.cross_entropy(logits_BK, batch.target, reduction="sum")
        best_B5 = best_five(logits_BK)
        top1, top5 = hits(best_B5, batch.target)
        sums[1] += top1
        sums[2] += top5
        for look in looks:
            look.add(batch.target, best_B5[:, 0], logits_BK)
        if answers_N is not None:
            sums[3] += (best_B5[:, 0] == answers_N[seen : seen + size]).sum()
        seen += size
    shares = [*sums.tolist(), float(seen)]
    *totals, images = shares if group is None else group.mean_over_ranks(shares)
    loss, right, among_five, agreed = (total / images for total in totals)
    figures = {names.TEST_LOSS: loss, names.TEST_TOP1: 100 * right, names.TEST_TOP5: 100 * among_five}
    if answers_N is not None:
        figures[names.TEST_AGREEMENT] = 100 * agreed
    return figures
