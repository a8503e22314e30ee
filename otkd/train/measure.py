"""What a network costs: parameters, multiply-adds, bytes, latency."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from otkd.core import names
from otkd.core.cards import DataCard


def compression(model: nn.Module, card: DataCard) -> dict[str, float]:
    """Parameters, multiply-adds per image, bytes on disk (fp32 state dict) and CPU latency of one image in ms."""
    model = model.eval()
    device = next(model.parameters()).device
    image = torch.zeros(1, card.channels, card.side, card.side, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _counted_attention():
        model(image)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return {
        names.PARAMS: float(sum(parameter.numel() for parameter in model.parameters())),
        names.MADDS: counter.get_total_flops() / 2,
        names.BYTES: float(file.getbuffer().nbytes),
        names.LATENCY_MS: cpu_latency_ms(model, image),
    }


def cpu_latency_ms(model: nn.Module, image: torch.Tensor, runs: int = 30) -> float:
    """Median milliseconds of one image through the network on one CPU thread."""
    device = image.device
    model = model.cpu()
    image = image.cpu()
    seconds = []
    with torch.inference_mode(), one_thread():
        for _ in range(5 + runs):
            begin = time.perf_counter()
            model(image)
            seconds.append(time.perf_counter() - begin)
    model.to(device)
    return statistics.median(seconds[5:]) * 1000


@contextmanager
def _counted_attention() -> Iterator[None]:
    """Without torch's short way through attention, of which the counter does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
