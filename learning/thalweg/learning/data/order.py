"""Which samples a microbatch holds: a pure function of (seed, step, microbatch)."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.randomness import Purpose, generator
from thalweg.v1 import job_pb2

# Up to this number of samples, `auto` draws permutations: 8 MiB each.
MAX_PERMUTED = 1 << 20
# Rounds of the Feistel network. Four make it a pseudorandom permutation if each is pseudorandom; mixing is weaker than that.
_ROUNDS = 8


class Arrangement(Protocol):
    """The order of the samples in each epoch."""

    def __call__(self, epoch: int, first: int, end: int) -> NDArray[np.intp]:
        """The samples at the positions from `first` to before `end` of an epoch."""


class Permutation:
    """An order that is drawn for each epoch, and kept."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples = samples
        self._seed = seed
        self._epoch = -1
        self._order: NDArray[np.intp] = np.empty(0, np.intp)

    def __call__(self, epoch: int, first: int, end: int) -> NDArray[np.intp]:
        """The samples at some positions of an epoch."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self._seed, Purpose.PERMUTATION, epoch).permutation(self._samples)
        return self._order[first:end]


class Bijection:
    """An order that is computed, position by position, with keys that are drawn for each epoch: nothing is kept.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of some bits. A result that is not below the number of samples
    is mapped again until it is (cycle walking, Black and Rogaway 2002), on average less than twice.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self._samples = samples
        self._seed = seed
        bits = max(2, (samples - 1).bit_length())
        self._right = np.uint64(bits - bits // 2)
        self._keys: tuple[int, NDArray[np.uint64]] = (-1, np.empty(0, np.uint64))
        self._masks = tuple(np.uint64((1 << half) - 1) for half in (bits // 2, bits - bits // 2))

    def __call__(self, epoch: int, first: int, end: int) -> NDArray[np.intp]:
        """The samples at some positions of an epoch."""
        if epoch != self._keys[0]:
            self._keys = epoch, generator(self._seed, Purpose.PERMUTATION, epoch).integers(0, 1 << 64, _ROUNDS, np.uint64)
        keys = self._keys[1]
        found = self._mapped(np.arange(first, min(end, self._samples), dtype=np.uint64), keys)
        while (outside := np.flatnonzero(found >= self._samples)).size:
            found[outside] = self._mapped(found[outside], keys)
        return found.astype(np.intp)

    def _mapped(self, values: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._right, values & self._masks[1]
        for number, key in enumerate(keys):
            if number % 2:
                right ^= mixed(left ^ key) & self._masks[1]
            else:
                left ^= mixed(right ^ key) & self._masks[0]
        return (left << self._right) | right


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): each bit depends on all bits."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def arrangement(order: str, samples: int, seed: int) -> Arrangement:
    """The arrangement that `data.order` names. A job that was accepted before there was a choice names none."""
    computed = order == "computed" or not keeps_permutations(order, samples)
    return Bijection(samples, seed) if computed else Permutation(samples, seed)


def keeps_permutations(order: str, samples: int) -> bool:
    """Whether permutations of the samples are kept in memory: for few samples, or if `data.order` says so.

    A job that was accepted before there was a choice names no order, and keeps its permutations.
    """
    return samples <= MAX_PERMUTED or order in ("", "permuted")


class Order:
    """Cuts each epoch into minibatches, and those into microbatches. `spec` is complete."""

    def __init__(self, spec: job_pb2.JobSpec, samples: int) -> None:
        self._samples = samples
        self._batch_size = min(spec.training.batch_size, samples)
        self._microbatches = spec.training.microbatches
        self._arrangement = arrangement(spec.data.order, samples, spec.seed)
        self._step = -1
        self._minibatch: NDArray[np.intp] = np.empty(0, np.intp)
        self.steps_per_epoch = -(-samples // self._batch_size)

    @property
    def sizes(self) -> list[int]:
        """The numbers of samples that microbatches have, but for 0, from the largest to the smallest."""
        last, parts = self._samples - (self.steps_per_epoch - 1) * self._batch_size, self._microbatches
        found = {size // parts + more for size in (self._batch_size, last) for more in ((0, 1) if size % parts else (0,))}
        return sorted(found - {0}, reverse=True)

    def minibatch(self, step: int) -> NDArray[np.intp]:
        """The samples of a step. The last minibatch of an epoch may be smaller."""
        if step != self._step:
            epoch, position = divmod(step, self.steps_per_epoch)
            first = position * self._batch_size
            self._step, self._minibatch = step, self._arrangement(epoch, first, first + self._batch_size)
        return self._minibatch

    def microbatch(self, step: int, microbatch: int) -> tuple[NDArray[np.intp], int]:
        """The samples of a microbatch, possibly none, and the number of samples in the whole minibatch."""
        minibatch = self.minibatch(step)
        size, parts = len(minibatch), self._microbatches
        return minibatch[microbatch * size // parts : (microbatch + 1) * size // parts], size
