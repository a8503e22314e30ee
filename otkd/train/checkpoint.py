"""Checkpoints: written whole or not at all, the one before kept, read without unpickling code."""

from __future__ import annotations

import io
import logging
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otkd.core.errors import CheckpointError
from otkd.core.layout import TrialDir, atomic

log = logging.getLogger("otkd")


def save(folder: TrialDir, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint; the newest so far becomes the previous one.

    Raises:
        StorageError: the disk refuses; the newest so far is still there.
    """
    with atomic(folder.checkpoint) as temporary:
        _write(state, temporary)
        if folder.checkpoint.exists():
            folder.checkpoint.replace(folder.previous)


def load(folder: TrialDir) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None when there is none. A damaged one is named in the log."""
    there = [path for path in (folder.checkpoint, folder.previous) if path.exists()]
    for index, path in enumerate(there):
        way_out = "going on from the one before" if index + 1 < len(there) else "this trial begins anew"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a torn file fails in many ways, all of which mean the same
            log.warning("%s cannot be read (%s); %s", path, first_line(error), way_out)
            continue
        return state
    return None


def remove(folder: TrialDir) -> None:
    """A trial that has ended needs no checkpoint."""
    for path in (folder.checkpoint, folder.previous):
        path.unlink(missing_ok=True)


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a plain state dict."""
    with atomic(path) as temporary:
        _write(weights, temporary)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a plain state dict.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there are no weights at {path}; train that network first.") from None
    except Exception as error:
        broken = path.parent if TrialDir(path.parent).done else path
        way_out = f"delete {broken}, and the next `otkd sweep` makes it again."
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); {way_out}") from error
    return weights


def _write(state: dict[str, Any], path: Path) -> None:
    """By way of memory: torch's own writer hides a full disk behind errors of its file format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())


def first_line(error: Exception) -> str:
    """The beginning of an error's message, for one of ours."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 120, placeholder=" …")
