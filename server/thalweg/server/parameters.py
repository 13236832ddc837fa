"""The arrays of one running job: two versions of the parameters, the optimizer's state, the gradients on their way.

Version v lies in buffer v mod 2, so that while v + 1 is being made, range by range, a task can still be computed at v.
"""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.contract.tree import Node
from thalweg.server import clipping, optimizers
from thalweg.server.optimizers import State
from thalweg.server.plan import Plan

ROOT_SLAB = 0


class Parameters:
    """Carries out a coordinator's arithmetic."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.version = 0
        self.dtype = np.dtype(plan.spec.model.dtype)
        self._buffers = (np.zeros(plan.elements, self.dtype), np.zeros(plan.elements, self.dtype))
        self._optimizer = optimizers.make(plan.optimizer)
        self._state = self._optimizer.init(plan.elements, self.dtype)
        # A node's gradient lies in the slab of its step and its leftmost microbatch. Its left child's lies there too: of the two,
        # only one is alive in any chunk, so adding the right child's in place makes the parent's.
        self._gradients: dict[int, dict[int, Slab]] = {}
        self._free: list[Slab] = []
        self._clip = 1.0

    @property
    def current(self) -> Slab:
        """The parameters at the current version. Whoever keeps them over an update copies them."""
        return self._buffers[self.version % 2]

    def keep_initial(self, chunk: int, values: Slab) -> None:
        """Puts a chunk of the initial parameters where it belongs."""
        self._buffers[0][self.plan.chunk_range(chunk)] = values

    def chunk(self, version: int, chunk: int) -> Slab:
        """A chunk at the current or the next version, not copied."""
        return self._buffers[version % 2][self.plan.chunk_range(chunk)]

    def keep(self, step: int, node: Node, chunk: int, values: Slab) -> None:
        """Keeps a chunk of a node's gradient."""
        slabs, first = self._gradients.setdefault(step, {}), node.leaves(self.plan.microbatches).start
        if first not in slabs:
            slabs[first] = self._free.pop() if self._free else np.empty(self.plan.elements, self.dtype)
        slabs[first][self.plan.chunk_range(chunk)] = values

    def merge(self, step: int, parent: Node, chunk: int) -> None:
        """Adds the right child's chunk to the left child's."""
        left, right = (child.leaves(self.plan.microbatches).start for child in parent.children)
        slabs, where = self._gradients[step], self.plan.chunk_range(chunk)
        # A sum that is not finite shows in the update.
        with np.errstate(over="ignore", invalid="ignore"):
            slabs[left][where] += slabs[right][where]

    def measure(self, step: int) -> None:
        """Computes by how much a step's whole gradient is scaled to clip it."""
        norm = clipping.squared_norm(self._gradients[step][ROOT_SLAB]) ** 0.5
        self._clip = clipping.scale(norm, self.plan.optimizer.clip_global_norm)

    def apply(self, version: int, step: int, chunk: int, schedule_factor: float) -> bool:
        """Makes a chunk of version + 1 with a step's gradient. False if it has values that are NaN or infinite."""
        where = self.plan.chunk_range(chunk)
        gradient = self._gradients[step][ROOT_SLAB][where]
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

    def promote(self, version: int, step: int) -> None:
        """The next version is whole: it becomes the current one, and the step's gradient is done with."""
        self.version = version
        self._clip = 1.0
        # Slabs beyond those of a step belong to a division of the work that is over.
        self._free = list(self._gradients.pop(step).values())

    def snapshot(self) -> tuple[Slab, State]:
        """A copy of the parameters at the current version and of the optimizer's state; both must be whole."""
        return self.current.copy(), {name: slab.copy() for name, slab in self._state.items()}

    def restore(self, version: int, parameters: Slab, state: State) -> None:
        """Takes the place of a snapshot's version. Raises ValueError if it does not fit."""
        if parameters.shape != self.current.shape or parameters.dtype != self.dtype or state.keys() != self._state.keys():
            raise ValueError("the checkpoint is of another model or optimizer")
        self.version = version
        self.current[:] = parameters
        for name, slab in self._state.items():
            slab[:] = state[name]
