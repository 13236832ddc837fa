"""The arrays of one running job: two versions of the parameters, the optimizer's state, the gradients on their way.

Version v lies in buffer v mod 2, so that while v + 1 is being made, range by range, a task can still be computed at v.
"""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.contract.tree import Node
from thalweg.server import clipping, optimizers
from thalweg.server.plan import Plan

ROOT_SLAB = 0


class Parameters:
    """Carries out a coordinator's arithmetic."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.version = 0
        self.dtype = np.dtype(plan.spec.model.dtype)
        self._buffers = (np.zeros(plan.elements, self.dtype), np.zeros(plan.elements, self.dtype))
        self._optimizer = optimizers.make(plan.spec.optimizer)
        self._state = self._optimizer.init(plan.elements, self.dtype)
        # A node's gradient lies in the slab of its leftmost microbatch. Its left child's lies there too: of the two, only one
        # is alive in any chunk, so adding the right child's in place makes the parent's.
        self._gradients: dict[int, Slab] = {}
        self._used: set[int] = set()
        self._clip = 1.0

    @property
    def current(self) -> Slab:
        """The parameters at the current version. Whoever keeps them over an update copies them."""
        return self._buffers[self.version % 2]

    def keep_initial(self, chunk: int, values: Slab) -> None:
        """Puts a chunk of the initial parameters where it belongs."""
        self._buffers[0][self.plan.chunk_range(chunk)] = values

    def chunk(self, version: int, chunk: int) -> bytes:
        """The bytes of a chunk at the current or the next version."""
        return self._buffers[version % 2][self.plan.chunk_range(chunk)].tobytes()

    def keep(self, node: Node, chunk: int, values: Slab) -> None:
        """Keeps a chunk of a node's gradient."""
        first = node.leaves(self.plan.microbatches).start
        if first not in self._gradients:
            self._gradients[first] = np.empty(self.plan.elements, self.dtype)
        self._used.add(first)
        self._gradients[first][self.plan.chunk_range(chunk)] = values

    def merge(self, parent: Node, chunk: int) -> None:
        """Adds the right child's chunk to the left child's."""
        left, right = (child.leaves(self.plan.microbatches).start for child in parent.children)
        where = self.plan.chunk_range(chunk)
        # A sum that is not finite shows in the update.
        with np.errstate(over="ignore", invalid="ignore"):
            self._gradients[left][where] += self._gradients[right][where]

    def measure(self) -> None:
        """Computes by how much the whole gradient is scaled to clip it."""
        norm = clipping.squared_norm(self._gradients[ROOT_SLAB]) ** 0.5
        self._clip = clipping.scale(norm, self.plan.spec.optimizer.clip_global_norm)

    def apply(self, version: int, chunk: int, schedule_factor: float) -> bool:
        """Makes a chunk of version + 1. False if it has values that are NaN or infinite."""
        where = self.plan.chunk_range(chunk)
        gradient = self._gradients[ROOT_SLAB][where]
        if self._clip != 1.0:
            with np.errstate(invalid="ignore"):
                gradient *= gradient.dtype.type(self._clip)
        out = self._buffers[(version + 1) % 2][where]
        optimizers.apply(
            self._optimizer,
            self._buffers[version % 2][where],
            gradient,
            {name: slab[where] for name, slab in self._state.items()},
            out,
            self._optimizer.learning_rate * schedule_factor,
            version,
        )
        # A sum is finite only if all its terms are, and takes no second array. Terms too great to add are looked at one by one.
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(np.add.reduce(out))) or bool(np.isfinite(out).all())

    def promote(self, version: int) -> None:
        """The next version is whole: it becomes the current one."""
        self.version = version
        self._clip = 1.0
        # Slabs that this step did not need belong to a division of the work that is over.
        for unused in self._gradients.keys() - self._used:
            del self._gradients[unused]
        self._used.clear()
