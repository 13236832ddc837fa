"""Copies of all of a job's slabs, put together here from a part that is here and the pieces that shards send."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from thalweg.contract.errors import protocol_violation
from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.parameters import Parameters
from thalweg.v1 import shard_service_pb2 as pb

# Stands for all that is copied here.
_OWN = ("", -1)


class _Copy(NamedTuple):
    slabs: OptimizerState
    missing: set[tuple[str, int]]
    then: Callable[[OptimizerState], object]


class Assembly:
    """The copies of one job that are not complete, by numbers. `parameters` are those that are here: the last range."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._plan = parameters.plan
        self._copies: dict[int, _Copy] = {}
        self._numbers = itertools.count(1)

    def begin(self, names: list[str], then: Callable[[OptimizerState], object]) -> tuple[int, OptimizerState]:
        """Begins a copy of some slabs. Gives its number, and its parts that are to be filled here; `then` gets the whole."""
        slabs: OptimizerState = {name: np.empty(self._plan.elements, self._parameters.dtype) for name in names}
        number, first = next(self._numbers), self._parameters.chunks.start
        self._copies[number] = _Copy(slabs, {(name, chunk) for name in slabs for chunk in range(first)} | {_OWN}, then)
        own = slice(self._plan.chunk_range(first).start, None)
        return number, {name: slab[own] for name, slab in slabs.items()}

    def add_own(self, number: int) -> None:
        """The parts that are filled here are full."""
        self._add(number, _OWN)

    def add(self, piece: pb.Piece, chunks: range) -> None:
        """Takes a piece from the shard that holds some chunks. Raises ThalwegError if it was not asked for."""
        copy = self._copies.get(piece.copy)
        if copy is None:
            return
        if piece.chunk not in chunks or (piece.slab, piece.chunk) not in copy.missing:
            raise protocol_violation(f"no copy of {piece.slab}'s chunk {piece.chunk} was asked for")
        part: Slab = copy.slabs[piece.slab][self._plan.chunk_range(piece.chunk)]
        try:
            self._parameters.identity.decode(piece.data, part)
        except ValueError as error:
            raise protocol_violation(f"chunk {piece.chunk} {error}") from error
        self._add(piece.copy, (piece.slab, piece.chunk))

    def _add(self, number: int, part: tuple[str, int]) -> None:
        copy = self._copies.get(number)
        if copy is None:
            return
        copy.missing.remove(part)
        if not copy.missing:
            del self._copies[number]
            copy.then(copy.slabs)

    def clear(self) -> None:
        """No copy will be complete."""
        self._copies.clear()
