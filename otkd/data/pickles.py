"""Reading old data sets that come as Python pickles, without the code execution that pickles allow.

otkd loads no pickle from disk. The Python archives of CIFAR-10 and CIFAR-100 consist of them, so they are
read by an unpickler that can build plain containers, text, numbers and numpy arrays, and refuses every other name.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from otkd.core.errors import DataError


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into pickles that Python 2 could read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode(encoding)


_REBUILD_ARRAY: Any = np.zeros(0).__reduce__()[0]
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("_codecs", "encode"): _latin1,
}
"""Every name that a pickle may refer to."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which data does not need")
        return ADMITTED[module, name]


def read_plain_pickle(file: Path) -> Any:
    """The containers, numbers, text and arrays in `file`; text of Python 2 is read as latin-1.

    Raises:
        DataError: the file is damaged, incomplete or refers to anything else.
    """
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a damaged pickle fails in whatever way its bytes happen to say
        raise DataError(f"{file}: not a readable data file ({error}). Get the file anew.") from error
