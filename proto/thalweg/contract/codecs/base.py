"""The interface of a codec: an encoding of the numbers of a slab, chunk by chunk."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from thalweg.contract.layout import Slab, ranges

# What is sent.
Bytes: TypeAlias = NDArray[np.uint8]
# What was received.
Received: TypeAlias = "bytes | bytearray | memoryview | Bytes"


# The message of the contract that describes a codec.
S_co = TypeVar("S_co", bound=Message, covariant=True)


class Codec(ABC, Generic[S_co]):
    """Base of all codecs. An object belongs to one thread.

    `settings` is the message of the contract that describes the codec, with its defaults filled in. Values are one-dimensional,
    contiguous, and begin where a chunk of `chunk_elements` begins. Each chunk in them is encoded separately, and its bytes
    follow those of the previous chunk. So a run of chunks may be encoded or decoded at once or in parts.
    """

    # Whether the error of encoding a gradient is added to the next one.
    feedback = False
    # Whether parameters, on their way to workers, are encoded too.
    parameters = False

    def __init__(self, settings: S_co, chunk_elements: int) -> None:
        self.settings = settings
        self.chunk_elements = chunk_elements
        self._scratch: dict[str, NDArray[Any]] = {}

    def size(self, elements: int) -> int:
        """The number of bytes of a number of values."""
        whole, rest = divmod(elements, self.chunk_elements)
        return whole * self._size(self.chunk_elements) + (self._size(rest) if rest else 0)

    def encode(self, values: Slab, out: Bytes | None = None) -> Bytes:
        """The bytes of values, in `out`, if that is given, which has the right size. Equal values give equal bytes."""
        out = np.empty(self.size(values.size), np.uint8) if out is None else out
        # Values that are not finite are found after decoding.
        with np.errstate(all="ignore"):
            for where, within in self._chunks(values.size):
                self._encode(values[where], out[within])
        return out

    def decode(self, data: Received, out: Slab) -> None:
        """The values of bytes, which need not be trusted, in `out`, which has their number.

        Raises ValueError if `encode` makes no such bytes. `out` may then be changed.
        """
        raw = self._checked(data, out.size)
        with np.errstate(all="ignore"):
            for where, within in self._chunks(out.size):
                self._decode(raw[within], out[where])

    def decoded(self, data: Received, elements: int) -> Slab:
        """As `decode`, in an array that may be a read-only view of the bytes."""
        out = np.empty(elements, np.float32)
        self.decode(data, out)
        return out

    @abstractmethod
    def _size(self, elements: int) -> int:
        """The number of bytes of a chunk."""

    @abstractmethod
    def _encode(self, values: Slab, out: Bytes) -> None:
        """Encodes a chunk."""

    @abstractmethod
    def _decode(self, data: Bytes, out: Slab) -> None:
        """Decodes a chunk, which has the right size. Raises ValueError if `encode` makes no such chunk."""

    def _chunks(self, elements: int) -> Iterator[tuple[slice, slice]]:
        """The ranges of the values and of the bytes of each chunk."""
        start = 0
        for where in ranges(elements, self.chunk_elements):
            end = start + self._size(where.stop - where.start)
            yield where, slice(start, end)
            start = end

    def _checked(self, data: Received, elements: int) -> Bytes:
        raw = np.frombuffer(data, np.uint8)
        if raw.size != self.size(elements):
            raise ValueError(f"has {raw.size} bytes, not {self.size(elements)}")
        return raw

    def scratch(self, kind: str, elements: int) -> NDArray[Any]:
        """An array of a NumPy type for intermediate results, uninitialised. The same one at each call."""
        if kind not in self._scratch:
            self._scratch[kind] = np.empty(self.chunk_elements, kind)
        return self._scratch[kind][:elements]
