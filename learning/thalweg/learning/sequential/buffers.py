"""Arrays for intermediate results: made once for each purpose and shape, so that in the steady state nothing is allocated."""

from typing import Any

import numpy as np


class Buffers:
    """The arrays of one owner. Belongs to one thread."""

    def __init__(self, dtype: np.dtype[np.floating]) -> None:
        self._dtype = dtype
        self._arrays: dict[tuple[str, tuple[int, ...]], Any] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """The array of this name and shape, with any content, of the owner's dtype if no other is given: the same each time."""
        key = (name, shape)
        if key not in self._arrays:
            self._arrays[key] = np.empty(shape, dtype or self._dtype)
        return self._arrays[key]
