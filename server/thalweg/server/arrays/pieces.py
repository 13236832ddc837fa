"""Copies of slabs that are made part by part: each when its turn comes, or just before what it is a copy of changes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from thalweg.contract.layout import Slab
from thalweg.server.arrays.parameters import PARAMETERS, Parameters
from thalweg.v1 import shard_service_pb2 as pb


class Part(ABC):
    """A chunk of a slab at a version, of shape (elements), that is copied once."""

    def __init__(self, slab: str, version: int, values: Slab) -> None:
        self._slab = slab
        self._version = version
        self._values: Slab | None = values

    @property
    def made(self) -> bool:
        """Whether it is copied already."""
        return self._values is None

    def changed_by(self, version: int) -> bool:
        """Whether an update of a version changes what it is a copy of. Parameters have two buffers, the others one."""
        return self._slab != PARAMETERS or self._version % 2 != version % 2

    def make(self) -> int:
        """Copies it now, if that has not been done. Gives the number of bytes copied."""
        values, self._values = self._values, None
        if values is None:
            return 0
        self._take(values)
        return values.nbytes

    @abstractmethod
    def _take(self, values: Slab) -> None:
        """Copies values, which may change after that."""


class Piece(Part):
    """A part as a message about it says."""

    def __init__(self, share: int, copy: int, slab: str, chunk: int, version: int, values: Slab) -> None:
        super().__init__(slab, version, values)
        self._share = share
        self._piece = pb.Piece(copy=copy, slab=slab, chunk=chunk)

    def _take(self, values: Slab) -> None:
        self._piece.data = values.tobytes()

    def message(self) -> pb.HoldRequest:
        """The message that brings it."""
        self.make()
        return pb.HoldRequest(share=self._share, copied=self._piece)


class PendingParts:
    """Parts of copies that are not made yet, by chunks."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[Part]] = {}

    def add(self, chunk: int, part: Part) -> None:
        """A part of a chunk is to be made."""
        self._waiting.setdefault(chunk, []).append(part)

    def clear(self) -> None:
        """Nothing waits any more."""
        self._waiting.clear()

    def before_update(self, version: int, chunks: Iterable[int]) -> None:
        """Makes the parts that an update of a version changes; see `Parameters.apply`."""
        for chunk in chunks:
            left = [part for part in self._waiting.pop(chunk, ()) if not part.made]
            for part in left:
                if part.changed_by(version):
                    part.make()
            left = [part for part in left if not part.made]
            if left:
                self._waiting[chunk] = left

    def before_change(self) -> None:
        """Makes all parts: anything may change now."""
        for part in (part for parts in self._waiting.values() for part in parts):
            part.make()
        self.clear()


class Pieces(PendingParts):
    """The pieces of one share's copies that are not made yet."""

    def __init__(self, share: int, parameters: Parameters) -> None:
        super().__init__()
        self._share = share
        self._parameters = parameters

    def copy(self, number: int, state: bool) -> Iterator[Piece]:
        """The pieces of a copy of the slabs as they are now, with the optimizer's state if that is wanted."""
        parameters = self._parameters
        for name, slab in parameters.slabs.items():
            for chunk in parameters.chunks if state or name == PARAMETERS else ():
                values = slab[parameters.where(chunk)]
                piece = Piece(self._share, number, name, chunk, parameters.version, values)
                self.add(chunk, piece)
                yield piece
