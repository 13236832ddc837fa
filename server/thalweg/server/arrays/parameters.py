"""The arrays of one running job: two versions of the parameters, the optimizer's state, the gradients on their way.

Version v lies in buffer v mod 2, so that while v + 1 is being made, range by range, a task can still be computed at v. Constants
lie in both from the beginning, and no step touches them.

A gradient that arrives is not copied: what is kept is where it lies, chunk by chunk. Sums of some of the microbatches are written
to slabs of the server's own; the last addition, which makes the whole step's gradient, is left to the update, which does it block
by block in the cache. So with two contributions, as with one, a gradient is read once and never written.

Where several servers share a job, each holds a range of the chunks, and arrays that long.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from thalweg.contract import codecs, tree
from thalweg.contract.codecs import SlabCodec
from thalweg.contract.layout import Slab
from thalweg.contract.tree import Node
from thalweg.learning import optimizers
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.deciding.chunks import bits, runs
from thalweg.server.deciding.plan import Plan

# A chunk of a gradient: an array, or two whose sum it is.
Terms: TypeAlias = tuple[Slab] | tuple[Slab, Slab]
# Chunks that are updated or reduced at once, from which on it pays to divide them among threads.
_MIN_TO_SHARE = 4

# The name of the parameters among the slabs; the others are those of the optimizer's state.
PARAMETERS = "parameters"


class Parameters:
    """Carries out a coordinator's arithmetic, on some of the plan's chunks, or on all of them.

    `buffers` are two slabs of zeros for the parameters, if they are to lie there. `crew` divides updates and reductions of
    many chunks among threads.
    """

    def __init__(
        self,
        plan: Plan,
        buffers: tuple[Slab, Slab] | None = None,
        crew: ArithmeticPool | None = None,
        chunks: range | None = None,
    ) -> None:
        self.plan = plan
        self.chunks = range(plan.chunks) if chunks is None else chunks
        # Those of which gradients come, as a set.
        self._sent = plan.sent & bits(self.chunks)
        self.version = 0
        self._crew = crew
        start, end = (plan.chunk_range(chunk).start for chunk in (self.chunks.start, self.chunks.stop))
        self._start = start
        self._elements = min(end, plan.elements) - start
        self.dtype = np.dtype(plan.spec.model.dtype)
        # Of initial parameters, of the gradients that come, and of the parameters that go.
        self.identity = codecs.identity(plan.spec, plan.chunk_elements)
        self.incoming = SlabCodec(codecs.of_gradients(plan.spec, plan.chunk_elements), plan.parameters, plan.constants)
        self.outgoing = SlabCodec(codecs.of_parameters(plan.spec, plan.chunk_elements), plan.parameters)
        self._root = tree.root(plan.microbatches)
        self._buffers = buffers or (np.zeros(self._elements, self.dtype), np.zeros(self._elements, self.dtype))
        self._optimizer = optimizers.make(plan.optimizer)
        self._state = self._optimizer.init(self._elements, self.dtype)
        # For each step, by a node's leftmost microbatch and the chunk, what the node adds. A parent takes its left child's place.
        self._gradients: dict[int, dict[tuple[int, int], Terms]] = {}
        # For each step, by the leftmost microbatch of a node, its sum.
        self._sums: dict[int, dict[int, _Sum]] = {}
        # Slabs for sums, and how many others are in use, and were at most since the last version.
        self._free: list[Slab] = []
        self._used = self._peak = 0
        self._whole = np.empty(self._elements if plan.reductions else 0, self.dtype)
        # Those of the plan, scaled by the step's reductions.
        self._spans = plan.spans

    @property
    def current(self) -> Slab:
        """The parameters at the current version. A caller that keeps them beyond an update must copy them."""
        return self._buffers[self.version % 2]

    @property
    def slabs(self) -> OptimizerState:
        """The parameters at the current version and the optimizer's state, by name, not copied."""
        return {PARAMETERS: self.current} | self._state

    def where(self, chunk: int) -> slice:
        """Where a chunk lies in the slabs."""
        whole = self.plan.chunk_range(chunk)
        return slice(whole.start - self._start, whole.stop - self._start)

    def _changing(self, chunk: int) -> slice:
        """Where those elements of a chunk lie that updates change."""
        start = self.where(chunk).start
        return slice(start, start + self.plan.changing_elements(chunk))

    def _spread_constants(self, chunks: range) -> None:
        """Puts the constants of some chunks, which are at the current version, beside the next one's parameters."""
        for chunk in chunks:
            constants = slice(self._changing(chunk).stop, self.where(chunk).stop)
            self._buffers[(self.version + 1) % 2][constants] = self.current[constants]

    def keep_initial(self, chunk: int, values: Slab) -> None:
        """Puts a chunk of the initial parameters where it belongs."""
        self._buffers[0][self.where(chunk)] = values
        self._spread_constants(range(chunk, chunk + 1))

    def chunk(self, version: int, chunk: int) -> Slab:
        """A chunk at the current or the next version, not copied."""
        return self._buffers[version % 2][self.where(chunk)]

    def keep(self, step: int, node: Node, chunk: int, values: Slab) -> None:
        """Keeps a chunk of a node's gradient: the array itself, which must not change until the step is applied.

        What it has for constants is not used, and may be missing.
        """
        first = node.leaves(self.plan.microbatches).start
        self._gradients.setdefault(step, {})[first, chunk] = (values[: self.plan.changing_elements(chunk)],)

    def merge(self, step: int, parent: Node, chunk: int) -> None:
        """Adds the right child's chunk to the left child's."""
        left, right = (child.leaves(self.plan.microbatches).start for child in parent.children)
        parts = self._gradients[step]
        terms = parts[left, chunk][0], parts.pop((right, chunk))[0]
        if parent == self._root:
            parts[left, chunk] = terms
            return
        sums = self._sums.setdefault(step, {})
        if left not in sums:
            sums[left] = self._new_sum()
        parts[left, chunk] = (_total(terms, sums[left].slab[self._changing(chunk)]),)
        if right in sums:
            sums[right].chunks -= 1
            if sums[right].chunks == 0:
                self._release(sums.pop(right))

    def _new_sum(self) -> "_Sum":
        self._used += 1
        self._peak = max(self._peak, self._used)
        return _Sum(self._free.pop() if self._free else np.empty(self._elements, self.dtype), self._sent.bit_count())

    def _release(self, total: "_Sum") -> None:
        self._used -= 1
        self._free.append(total.slab)

    def reduce(self, version: int, step: int, reduction: int) -> None:
        """Computes one of a step's reductions, in their order, where all of the arrays are here."""
        self.scale(reduction, self.factors(reduction, self.block_sums(version, step, reduction)))

    def block_sums(self, version: int, step: int, reduction: int) -> list[float]:
        """What there is here of the sums of a reduction, in the order of the slab. The first one adds the step's gradient up."""
        share = self._share(self.chunks)
        if reduction == 0:

            def add(chunk: int) -> bool:
                parts = self._gradients[step]
                parts[0, chunk] = (_total(parts[0, chunk], self._whole[self._changing(chunk)]),)
                return True

            for chunks in runs(self._sent):
                share(add, chunks)
        return optimizers.block_sums(
            self._optimizer,
            self.plan.reductions[reduction],
            self._buffers[version % 2],
            self._whole,
            self._state,
            version,
            self._spans,
            slice(self._start, self._start + self._elements),
            share,
        )

    def _share(self, chunks: range) -> optimizers.Share:
        """How work on some chunks is divided among threads."""
        return self._crew.all if self._crew and len(chunks) >= _MIN_TO_SHARE else optimizers.in_turn

    def factors(self, reduction: int, sums: Iterable[float]) -> list[float]:
        """What follows from all sums of a reduction, in the order of the slab. Raises ValueError for another number of them."""
        return optimizers.factors(self.plan.reductions[reduction], sums, self._spans)

    def scale(self, reduction: int, factors: Sequence[float]) -> None:
        """Has a reduction's factors scale the updates up to the next version. Raises ValueError for another number of them."""
        self._spans = self._spans.scaled(self.plan.reductions[reduction], factors)

    def apply(self, version: int, step: int, chunks: range, schedule_factor: float) -> bool:
        """Makes chunks of version + 1 with a step's gradient. False if they have values that are NaN or infinite."""
        parts = self._gradients[step]
        rate = self._optimizer.learning_rate * schedule_factor

        def apply(chunk: int) -> bool:
            where, terms = self._changing(chunk), parts.pop((0, chunk))
            return optimizers.apply(
                self._optimizer,
                self._buffers[version % 2][where],
                terms if len(terms) == 2 else terms[0],
                {name: slab[where] for name, slab in self._state.items()},
                self._buffers[(version + 1) % 2][where],
                rate,
                version,
                spans=self._spans.within(slice(where.start + self._start, where.stop + self._start)),
            )

        return self._share(chunks)(apply, chunks)

    def promote(self, version: int, step: int) -> None:
        """The next version is whole: it becomes the current one, and the step's gradient is done with."""
        self.version = version
        self._spans = self.plan.spans
        if self._sent:
            del self._gradients[step]
        for total in self._sums.pop(step, {}).values():
            self._release(total)
        # More than were used at once belong to a division of the work that is over.
        del self._free[self._peak - self._used :]
        self._peak = self._used

    def drop(self) -> None:
        """Frees the arrays, as far as nobody else keeps them: nothing is computed any more."""
        nothing: Slab = np.empty(0, self.dtype)
        self._buffers, self._whole = (nothing, nothing), nothing
        self._state = {}
        self._gradients, self._sums, self._free = {}, {}, []

    def restore(self, version: int, parameters: Slab, state: OptimizerState | None) -> None:
        """Takes the place of a copy of `slabs`. `state` is None before the first step. Raises ValueError if it does not fit."""
        given = self.slabs if state is None else {PARAMETERS: parameters} | state
        if parameters.shape != self.current.shape or parameters.dtype != self.dtype or given.keys() != self.slabs.keys():
            raise ValueError("the checkpoint is of another model or optimizer")
        self.version = version
        self.current[:] = parameters
        self._spread_constants(self.chunks)
        for name, slab in self._state.items():
            slab[:] = 0 if state is None else state[name]

    def load(self, version: int, name: str, chunk: int, data: bytes) -> None:
        """Puts a chunk of one of a version's `slabs` where it belongs. Raises ValueError for another number of bytes."""
        self.version = version
        self.identity.decode(data, self.slabs[name][self.where(chunk)])
        if name == PARAMETERS:
            self._spread_constants(range(chunk, chunk + 1))


class _Sum:
    """The slab of a node's sum, and how many of its chunks have yet to be added to the node's left sibling, if it has one."""

    def __init__(self, slab: Slab, chunks: int) -> None:
        self.slab = slab
        self.chunks = chunks


def _total(terms: Terms, out: Slab) -> Slab:
    """The sum of one or two terms, in `out`."""
    # A sum that is not finite shows in the update.
    with np.errstate(over="ignore", invalid="ignore"):
        if len(terms) == 1:
            np.copyto(out, terms[0])
        else:
            np.add(terms[0], terms[1], out=out)
    return out
