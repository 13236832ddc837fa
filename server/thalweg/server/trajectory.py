"""The way that training took: a copy of the parameters at some versions, evenly spread over the job."""

from collections.abc import Iterable

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.plan import Plan

SNAPSHOTS = 64
MOST_BYTES = 64 << 20


class Trajectory:
    """Collects snapshots. Which versions it wants follows from the job alone."""

    def __init__(self, plan: Plan) -> None:
        slab_bytes = plan.elements * np.dtype(plan.spec.model.dtype).itemsize
        room = min(SNAPSHOTS, MOST_BYTES // slab_bytes) - 1
        # Fewer than a start and an end make no way; a model so large records none.
        self.wanted = room >= 1
        self._stride = max(1, -(-plan.total_steps // room)) if self.wanted else 0
        self._last = plan.total_steps
        self.versions: list[int] = []
        self._slabs: list[Slab] = []

    def offer(self, version: int, parameters: Slab) -> None:
        """Takes a copy of the parameters, if this version is wanted."""
        if self.wants(version):
            self.add(version, parameters)

    def wants(self, version: int) -> bool:
        """Whether a version is one of those to be kept."""
        return self.wanted and (version % self._stride == 0 or version == self._last)

    def add(self, version: int, parameters: Slab) -> None:
        """Takes a copy of the parameters, unless it has this version already."""
        if self.wanted and (not self.versions or self.versions[-1] != version):
            self.versions.append(version)
            self._slabs.append(parameters.copy())

    def slabs(self) -> Slab | None:
        """All snapshots, shape (versions, elements); None if there are none."""
        return np.stack(self._slabs) if self._slabs else None

    def restore(self, versions: Iterable[int], slabs: Slab | None) -> None:
        """Takes up the snapshots of an earlier run."""
        self.versions = list(versions)
        self._slabs = [] if slabs is None else list(slabs)
