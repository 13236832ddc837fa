"""The way that training took: a copy of the parameters at some versions, evenly spread over the job."""

from collections.abc import Iterable

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.deciding.plan import Plan

SNAPSHOTS = 64
MAX_BYTES = 64 << 20


class Trajectory:
    """Collects snapshots. Which versions it wants follows from the job alone."""

    def __init__(self, plan: Plan) -> None:
        slab_bytes = plan.elements * np.dtype(plan.spec.model.dtype).itemsize
        room = min(SNAPSHOTS, MAX_BYTES // slab_bytes) - 1
        # Fewer than a start and an end make no way; a model so large records none.
        self.wanted = room >= 1
        self._stride = max(1, -(-plan.total_steps // room)) if self.wanted else 0
        self._last = plan.total_steps
        # The bytes of all snapshots that it will take.
        self.max_bytes = slab_bytes * (-(-self._last // self._stride) + 1) if self.wanted else 0
        self.versions: list[int] = []
        self._slabs: list[Slab] = []

    def wants(self, version: int) -> bool:
        """Whether a version is one of those to be kept."""
        return self.wanted and (version % self._stride == 0 or version == self._last)

    def add(self, version: int, parameters: Slab) -> None:
        """Takes the parameters of a version, which must not change any more, unless it has this version already."""
        if self.wanted and (not self.versions or self.versions[-1] != version):
            self.versions.append(version)
            self._slabs.append(parameters)

    @property
    def slabs(self) -> tuple[Slab, ...]:
        """All snapshots, each of shape (elements), not copied: they do not change."""
        return tuple(self._slabs)

    def restore(self, versions: Iterable[int], slabs: Iterable[Slab]) -> None:
        """Takes copies of the snapshots of an earlier run."""
        copies = [slab.copy() for slab in slabs]
        self.versions, self._slabs = list(versions), copies
