"""The numbers as they are."""

from typing import Any

import numpy as np

from thalweg.contract.codecs.base import Bytes, Codec, Received
from thalweg.contract.layout import Slab


class Float32(Codec):
    """The numbers as they are, little-endian, in the job's dtype. Nothing is copied that need not be."""

    def __init__(self, settings: Any, chunk_elements: int, dtype: str = "float32") -> None:
        super().__init__(settings, chunk_elements)
        self.dtype = np.dtype(dtype).newbyteorder("<")

    def encode(self, values: Slab, out: Bytes | None = None) -> Bytes:
        """The bytes of values: a view of them, unless `out` is given."""
        if out is None:
            return values.view(np.uint8)
        return super().encode(values, out)

    def decoded(self, data: Received, elements: int) -> Slab:
        """A view of the bytes. Raises ValueError if there are too many or too few."""
        return self._checked(data, elements).view(self.dtype)

    def _size(self, elements: int) -> int:
        return elements * self.dtype.itemsize

    def _encode(self, values: Slab, out: Bytes) -> None:
        out[...] = values.view(np.uint8)

    def _decode(self, data: Bytes, out: Slab) -> None:
        out[...] = data.view(self.dtype)
