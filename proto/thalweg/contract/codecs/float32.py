"""The numbers unchanged."""

import numpy as np

from thalweg.contract.codecs.base import Bytes, Codec, Received
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2


class Float32(Codec[job_pb2.Float32]):
    """The numbers unchanged, little-endian, in the job's dtype, with as few copies as possible."""

    def __init__(self, settings: job_pb2.Float32, chunk_elements: int, dtype: str = "float32") -> None:
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
