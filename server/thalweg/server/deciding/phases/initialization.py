"""The phase in which a job's initial parameters are made."""

import math
from collections.abc import Iterable

from thalweg.server.deciding.decisions import AssignInitialize, Decision, KeepInitial
from thalweg.server.deciding.events import InitialReceived
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import WorkerId

# How long a worker may take to make the initial parameters until another one is to make them too; then twice as long.
_INITIALIZE_SECONDS = 5.0


class Initialization:
    """A worker makes the initial parameters, and another one too, if that takes long: all make the same."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._initializers: dict[WorkerId, None] = {}
        self._until = math.inf
        self._received: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether all chunks are there."""
        return len(self._received) == self.plan.chunks

    def assign(self, prepared: Iterable[WorkerId], now: float) -> list[Decision]:
        """Lets a prepared worker make the parameters, unless others are to, and are not late."""
        if self._initializers and now < self._until:
            return []
        worker = next((worker for worker in prepared if worker not in self._initializers), None)
        if worker is None:
            return []
        self._initializers[worker] = None
        self._until = now + _INITIALIZE_SECONDS * 2.0 ** (len(self._initializers) - 1)
        return [AssignInitialize(worker)]

    def busy(self, worker: WorkerId) -> bool:
        """Whether a worker makes the parameters."""
        return worker in self._initializers

    def lost(self, worker: WorkerId) -> None:
        """A worker is gone."""
        self._initializers.pop(worker, None)

    def received(self, event: InitialReceived) -> list[Decision]:
        """A chunk arrived from any worker. A chunk that had arrived before is not used."""
        if event.chunk in self._received:
            return []
        self._received.add(event.chunk)
        return [KeepInitial(event.chunk, event.payload)]
