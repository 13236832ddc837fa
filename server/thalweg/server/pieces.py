"""Copies of a share's slabs that are made piece by piece: when a piece is sent, or just before what it is a copy of changes."""

from collections.abc import Iterable, Iterator

from thalweg.contract.layout import Slab
from thalweg.server.parameters import PARAMETERS, Parameters
from thalweg.v1 import shard_service_pb2 as pb


class Piece:
    """A chunk of a slab at a version, of shape (elements), as a message about it says. It is copied once."""

    def __init__(self, share: int, copy: int, slab: str, chunk: int, version: int, values: Slab) -> None:
        self._share = share
        self._piece = pb.Piece(copy=copy, slab=slab, chunk=chunk)
        self._version = version
        self._values: Slab | None = values

    @property
    def made(self) -> bool:
        """Whether it is copied already."""
        return self._values is None

    def changed_by(self, version: int) -> bool:
        """Whether an update of a version changes what it is a copy of. Parameters have two buffers, the others one."""
        return self._piece.slab != PARAMETERS or self._version % 2 != version % 2

    def make(self) -> None:
        """Copies it now, if that has not been done."""
        if self._values is not None:
            self._piece.data = self._values.tobytes()
            self._values = None

    def message(self) -> pb.HoldRequest:
        """The message that brings it."""
        self.make()
        return pb.HoldRequest(share=self._share, copied=self._piece)


class Pieces:
    """The pieces of one share's copies that are not made yet, by chunks."""

    def __init__(self, share: int, parameters: Parameters) -> None:
        self._share = share
        self._parameters = parameters
        self._waiting: dict[int, list[Piece]] = {}

    def copy(self, number: int, state: bool) -> Iterator[Piece]:
        """The pieces of a copy of the slabs as they are now, with the optimizer's state if that is wanted."""
        parameters = self._parameters
        for name, slab in parameters.slabs.items():
            for chunk in parameters.chunks if state or name == PARAMETERS else ():
                values = slab[parameters.where(chunk)]
                piece = Piece(self._share, number, name, chunk, parameters.version, values)
                self._waiting.setdefault(chunk, []).append(piece)
                yield piece

    def before_update(self, version: int, chunks: Iterable[int]) -> None:
        """Makes the pieces that an update of a version changes; see `Parameters.apply`."""
        for chunk in chunks:
            left = [piece for piece in self._waiting.pop(chunk, ()) if not piece.made]
            for piece in left:
                if piece.changed_by(version):
                    piece.make()
            left = [piece for piece in left if not piece.made]
            if left:
                self._waiting[chunk] = left

    def before_change(self) -> None:
        """Makes all pieces: anything may change now."""
        for piece in (piece for pieces in self._waiting.values() for piece in pieces):
            piece.make()
        self._waiting.clear()
