"""Arrays that are being downloaded: one copy for all who ask for the same, and that in pieces."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from thalweg.contract.endpoint import CHUNK_BYTES
from thalweg.contract.layout import Slab
from thalweg.v1 import training_service_pb2

# Copies of a running job's parameters that are being downloaded at a time.
MAX_COPIES = 2

H = TypeVar("H", training_service_pb2.ParametersHeader, training_service_pb2.TrajectoryHeader)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Download(Generic[H]):
    """What is downloaded: a header, and then the bytes of some contiguous arrays, one after another. They do not change."""

    header: H
    arrays: Sequence[Slab]

    def pieces(self) -> Iterator[memoryview]:
        """The bytes in pieces of at most 1 MiB: views, not copies."""
        for array in self.arrays:
            data = array.reshape(-1).view("u1").data
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]


class Downloads(Generic[K, H]):
    """Downloads by keys, each of which exists once, for as long as somebody uses it. Belongs to an event loop.

    There are at most `limit` at a time. A further key gets the one that was made last.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: WeakValueDictionary[K, Download[H]] = WeakValueDictionary()
        self._making: dict[K, asyncio.Task[Download[H] | None]] = {}

    async def get(self, key: K, make: Callable[[], Awaitable[Download[H] | None]]) -> Download[H] | None:
        """The download of a key, made now if there is none. None if it cannot be made any more. Raises what `make` raises."""
        used = self._used.get(key)
        if used:
            return used
        if key not in self._making:
            if self._making and len(self._making) + len(self._used) >= self._limit:
                key = next(reversed(self._making))
            elif len(self._used) >= self._limit:
                return list(self._used.values())[-1]
            else:
                self._making[key] = asyncio.ensure_future(self._make(key, make))
        # One caller's end is not the others'.
        return await asyncio.shield(self._making[key])

    async def _make(self, key: K, make: Callable[[], Awaitable[Download[H] | None]]) -> Download[H] | None:
        try:
            made = await make()
            if made:
                self._used[key] = made
            return made
        finally:
            del self._making[key]
