"""What a run of a job starts from."""

import asyncio
from collections.abc import Awaitable, Callable

from thalweg.contract.layout import Slab
from thalweg.server.arrays.interface import Arrays
from thalweg.server.deciding.impossible import ImpossibleError
from thalweg.server.storage.checkpoints import Checkpoint
from thalweg.v1 import job_pb2

# Gives parameters as a slab of a layout, or raises ValueError.
Reader = Callable[[job_pb2.Layout], Awaitable[Slab]]


class StartingPoint:
    """An earlier run's checkpoint, or parameters that were given, or neither. `checkpoint` is there until it is loaded."""

    def __init__(self, checkpoint: Checkpoint | None, initial: Reader | None) -> None:
        self.checkpoint = checkpoint
        self._initial = initial
        self._given: asyncio.Future[Slab] | None = None

    def read(self, layout: job_pb2.Layout, then: Callable[[], object]) -> bool:
        """Whether the parameters are at hand. Begins to read them, if they are given, and calls `then` when that has ended."""
        if self.checkpoint or self._initial is None:
            return True
        if self._given is None:
            self._given = asyncio.ensure_future(self._initial(layout))
            self._given.add_done_callback(lambda _: then())
        return self._given.done()

    def load(self, arrays: Arrays) -> None:
        """Puts the parameters where they belong. Raises ValueError if they do not fit, or could not be read."""
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint:
            arrays.load(checkpoint.position.version, checkpoint.parameters, checkpoint.state)
            arrays.trajectory.restore(checkpoint.versions, checkpoint.trajectory)
        elif self._given:
            arrays.load(0, self._given.result(), None)
        else:
            raise ImpossibleError("parameters are to be loaded, and none were given")
