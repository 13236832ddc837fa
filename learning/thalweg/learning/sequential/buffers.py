"""Arrays for intermediate results: made once for each purpose and shape, so that in the steady state nothing is allocated."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Buffers:
    """The arrays of one owner. Belongs to one thread."""

    def __init__(self, dtype: np.dtype[np.floating]) -> None:
        self._dtype = dtype
        self._arrays: dict[tuple[str, tuple[int, ...], np.dtype[Any]], NDArray[Any]] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> NDArray[Any]:
        """The array of this name, shape and dtype, uninitialised: the same each time. The dtype is the owner's by default."""
        key = (name, shape, self._dtype if dtype is None else np.dtype(dtype))
        if key not in self._arrays:
            self._arrays[key] = np.empty(shape, key[2])
        return self._arrays[key]
