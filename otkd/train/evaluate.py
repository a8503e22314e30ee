"""Accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otkd.core import names
from otkd.core.output import ModelOutput
from otkd.data.pipeline import Batches

EVAL_BATCH = 500


def hits(logits_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the batch have their class at the largest, and among the five largest logits (on the device)."""
    hit_B5 = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices == target_B[:, None]
    return hit_B5[:, 0].sum(), hit_B5.sum()


@torch.inference_mode()
def predictions(network: Callable[[Tensor], ModelOutput], batches: Batches) -> Tensor:
    """The class (N,) with the largest logit, for every image in order."""
    return torch.cat([network(batch.image).logits.argmax(1) for batch in batches.ordered(EVAL_BATCH)])


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Batches, device: torch.device, dtype: torch.dtype | None, answers_N: Tensor | None
) -> dict[str, float]:
    """Loss (cross-entropy), top-1 and top-5 in percent, and top-1 agreement with `answers_N` in percent, if given.

    Leaves the model in eval mode.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    seen = 0
    for batch in batches.ordered(EVAL_BATCH):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits_BK = model(batch.image).logits.float()
        size = len(batch.target)
        sums[0] += F.cross_entropy(logits_BK, batch.target, reduction="sum")
        top1, top5 = hits(logits_BK, batch.target)
        sums[1] += top1
        sums[2] += top5
        if answers_N is not None:
            sums[3] += (logits_BK.argmax(1) == answers_N[seen : seen + size]).sum()
        seen += size
    loss, top1, top5, agreement = (sums / seen).tolist()
    figures = {names.TEST_LOSS: loss, names.TEST_TOP1: 100 * top1, names.TEST_TOP5: 100 * top5}
    if answers_N is not None:
        figures[names.TEST_AGREEMENT] = 100 * agreement
    return figures
