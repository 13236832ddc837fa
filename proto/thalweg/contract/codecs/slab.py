"""A job's codec for a whole slab: only parameters are encoded."""

import numpy as np
from google.protobuf.message import Message

from thalweg.contract.codecs.base import Bytes, Codec, Received
from thalweg.contract.codecs.float32 import Float32
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2


class SlabCodec:
    """Encodes runs of a slab's chunks. An object belongs to one thread.

    The slab's first `encoded` elements, its parameters, are encoded by `codec`; statistics and constants, which come after them,
    are sent unchanged. So a chunk has encoded numbers, then exact ones, or one of both. `start` is the position in the slab
    of a run's first element, where a chunk begins, or where the exact elements do.
    """

    def __init__(self, codec: Codec[Message], encoded: int) -> None:
        self.feedback = codec.feedback
        self._codec = codec
        self._encoded = encoded
        # Codecs that round are of float32.
        self._exact = codec if isinstance(codec, Float32) else Float32(job_pb2.Float32(), codec.chunk_elements)

    def size(self, start: int, elements: int) -> int:
        """The number of bytes of a run."""
        cut = self._cut(start, elements)
        return self._codec.size(cut) + self._exact.size(elements - cut)

    def encode(self, start: int, values: Slab) -> Bytes:
        """The bytes of a run of shape (elements): a view of the values, if they are sent unchanged."""
        cut = self._cut(start, values.size)
        if cut == values.size:
            return self._codec.encode(values)
        if cut == 0:
            return self._exact.encode(values)
        out, end = np.empty(self.size(start, values.size), np.uint8), self._codec.size(cut)
        self._codec.encode(values[:cut], out[:end])
        self._exact.encode(values[cut:], out[end:])
        return out

    def decode(self, start: int, data: Received, out: Slab) -> None:
        """The values of a run's bytes, which need not be trusted, in `out`, which has their number.

        Raises ValueError if `encode` makes no such bytes. `out` may then be changed.
        """
        raw, size = np.frombuffer(data, np.uint8), self.size(start, out.size)
        if raw.size != size:
            raise ValueError(f"has {raw.size} bytes, not {size}")
        cut = self._cut(start, out.size)
        end = self._codec.size(cut)
        self._codec.decode(raw[:end], out[:cut])
        self._exact.decode(raw[end:], out[cut:])

    def decoded(self, start: int, data: Received, elements: int) -> Slab:
        """As `decode`, in an array that may be a read-only view of the bytes."""
        cut = self._cut(start, elements)
        if cut == elements:
            return self._codec.decoded(data, elements)
        if cut == 0:
            return self._exact.decoded(data, elements)
        out = np.empty(elements, np.float32)
        self.decode(start, data, out)
        return out

    def _cut(self, start: int, elements: int) -> int:
        """The number of a run's first elements that are encoded. With an exact codec, the run is not divided."""
        if self._exact is self._codec:
            return elements
        return min(max(0, self._encoded - start), elements)
