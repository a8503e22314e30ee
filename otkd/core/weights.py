"""Weights from outside: what a trial names in place of a path, and where they lie once they have been taken in.

A trial holds a digest, so that the same file under another name is the same trial and another file under the same name
is not. The weights themselves lie under `runs/weights/`, checked, by that digest (`otkd.train.weights.take_in`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

NAMED = "named:"
"""Begins the digest of weights that come with an architecture, by their name there."""


class Given(NamedTuple):
    """Weights that a sweep names."""

    network: str
    """Whose they are."""
    source: str
    """The file, or the name of weights that come with the architecture."""
    digest: str
    begins: bool
    """Whether they are where training begins: then a classifier for other classes is left out."""


def digest(given: str) -> str:
    """The digest of a weights file's content; of the name where there is no such file.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        return f"{NAMED}{given}"
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
