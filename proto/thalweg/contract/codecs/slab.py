"""A job's codec for all of a slab: what is not descended travels as it is, or not at all."""

import numpy as np
from google.protobuf.message import Message

from thalweg.contract.codecs.base import Bytes, Codec, Received
from thalweg.contract.codecs.float32 import Float32
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2


class SlabCodec:
    """Encodes runs of a slab's chunks. An object belongs to one thread.

    The slab's first `encoded` elements, its parameters, travel as `codec` encodes them. After them, statistics and constants
    travel as they are. Elements from `sent` on, if that is given, do not travel: they are 0, as a gradient is for constants.
    `start` is the position in the slab of a run's first element, where a chunk begins, or where the exact elements do.
    """

    def __init__(self, codec: Codec[Message], encoded: int, sent: int | None = None) -> None:
        self.feedback = codec.feedback
        self._codec = codec
        self._encoded = encoded
        self._sent = sent
        # Codecs that round are of float32.
        self._exact = codec if isinstance(codec, Float32) else Float32(job_pb2.Float32(), codec.chunk_elements)

    def size(self, start: int, elements: int) -> int:
        """The number of bytes of a run."""
        cut, sent = self._parts(start, elements)
        return self._codec.size(cut) + self._exact.size(sent - cut)

    def encode(self, start: int, values: Slab) -> Bytes:
        """The bytes of a run of shape (elements): a view of the values, if they travel as they are."""
        cut, sent = self._parts(start, values.size)
        if cut == sent:
            return self._codec.encode(values[:sent])
        if cut == 0:
            return self._exact.encode(values[:sent])
        out, end = np.empty(self.size(start, values.size), np.uint8), self._codec.size(cut)
        self._codec.encode(values[:cut], out[:end])
        self._exact.encode(values[cut:sent], out[end:])
        return out

    def decode(self, start: int, data: Received, out: Slab) -> None:
        """The values of a run's bytes, which anybody may have sent, in `out`, which has their number.

        Raises ValueError if the bytes are none that `encode` makes. `out` may then be changed.
        """
        raw, size = np.frombuffer(data, np.uint8), self.size(start, out.size)
        if raw.size != size:
            raise ValueError(f"has {raw.size} bytes, not {size}")
        cut, sent = self._parts(start, out.size)
        end = self._codec.size(cut)
        self._codec.decode(raw[:end], out[:cut])
        self._exact.decode(raw[end:], out[cut:sent])
        out[sent:] = 0

    def decoded(self, start: int, data: Received, elements: int) -> Slab:
        """As `decode`, in an array that may be a read-only view of the bytes."""
        cut, sent = self._parts(start, elements)
        if cut == elements:
            return self._codec.decoded(data, elements)
        if cut == 0 and sent == elements:
            return self._exact.decoded(data, elements)
        out = np.empty(elements, self._exact.dtype)
        self.decode(start, data, out)
        return out

    def _parts(self, start: int, elements: int) -> tuple[int, int]:
        """How many of a run's first elements are encoded, and how many travel. What is exact anyway is not cut."""
        sent = elements if self._sent is None else min(max(0, self._sent - start), elements)
        cut = sent if self._exact is self._codec else min(max(0, self._encoded - start), sent)
        return cut, sent
