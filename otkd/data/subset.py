"""Choosing rows class by class, the same on every machine and with every version of numpy and torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def balanced(labels: Rows, count: int, seed: int) -> Rows:
    """`count` rows, ascending, equally many of each class; one that runs out leaves its share to the others."""
    order, rank, _ = _ranked(labels, seed)
    return _first(order, rank.astype(np.float64), count)


def proportional(labels: Rows, count: int, seed: int) -> Rows:
    """`count` rows, ascending, each class in proportion to its size (Sainte-Laguë's rule)."""
    order, rank, size = _ranked(labels, seed)
    return _first(order, (rank + 0.5) / size, count)


def _ranked(labels: Rows, seed: int) -> tuple[Rows, Rows, Rows]:
    """Rows in random order; each one's place among its class in that order; the size of its class."""
    order = shuffled(len(labels), seed)
    classes = labels[order]
    by_class = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[by_class], prepend=-1))
    sizes = np.diff(np.append(starts, len(labels)))
    rank, size = np.empty_like(order), np.empty_like(order)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, sizes)
    size[by_class] = np.repeat(sizes, sizes)
    return order, rank, size


def _first(order: Rows, key: NDArray[np.float64], count: int) -> Rows:
    return np.sort(order[np.argsort(key, kind="stable")[:count]])


def shuffled(count: int, seed: int) -> Rows:
    """A random order of `count` rows. Raw PCG64 output is pinned by numpy across versions; its `permutation` is not."""
    keys = np.random.PCG64(seed).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)
