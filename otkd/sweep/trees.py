"""Settings laid over settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(base: Mapping[str, Any], override: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """`base` with `override` laid over it: mappings are merged, everything else is replaced.

    Where another `name` chooses another optimizer, schedule or solver – choices stand two levels deep or deeper – it
    replaces the whole, since its options are others.
    """
    if depth >= 2 and "name" in override and override["name"] != base.get("name"):
        return dict(override)
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value, depth + 1)
        else:
            merged[key] = value
    return merged
