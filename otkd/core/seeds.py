"""Seeds for every purpose, derived from the trial's one."""

from __future__ import annotations

import hashlib


def derive(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit seed for a generator; unrelated purposes and epochs get unrelated streams."""
    text = f"{seed}/{purpose}/{epoch}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
