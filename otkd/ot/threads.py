"""The problems of a batch on as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

THREADED_SIZE = 2**17
"""Entries of all cost matrices from which on threads pay: to start them takes as long as a few problems of 64 × 64."""

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def each(work: Callable[[int], Answer], count: int, size: int) -> list[Answer]:
    """`work` for every problem, in order."""
    return _threaded(work, range(count), _threads(count, size))


def spans(work: Callable[[slice], Answer], count: int, size: int) -> list[Answer]:
    """`work` for a span of the problems per thread, in order."""
    threads = _threads(count, size)
    return _threaded(work, [slice(count * i // threads, count * (i + 1) // threads) for i in range(threads)], threads)


def _threads(count: int, size: int) -> int:
    return min(count, torch.get_num_threads()) if size >= THREADED_SIZE else 1


def _threaded(work: Callable[[Job], Answer], jobs: Iterable[Job], threads: int) -> list[Answer]:
    """The threads end with the call, so that a later fork finds none."""
    if threads == 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, jobs))
