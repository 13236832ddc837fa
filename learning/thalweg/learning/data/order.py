"""Which samples a microbatch holds: a pure function of (seed, step, microbatch)."""

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.randomness import Purpose, generator


class Order:
    """Cuts each epoch's permutation of the training samples into minibatches, and those into microbatches."""

    def __init__(self, samples: int, batch_size: int, microbatches: int, seed: int) -> None:
        self._samples = samples
        self._batch_size = min(batch_size, samples)
        self._microbatches = microbatches
        self._seed = seed
        self._epoch = -1
        self._order: NDArray[np.intp] = np.empty(0, np.intp)
        self.steps_per_epoch = -(-samples // self._batch_size)

    def minibatch(self, step: int) -> NDArray[np.intp]:
        """The samples of a step. The last minibatch of an epoch holds what is left."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self._seed, Purpose.PERMUTATION, epoch).permutation(self._samples)
        return self._order[position * self._batch_size : (position + 1) * self._batch_size]

    def microbatch(self, step: int, microbatch: int) -> tuple[NDArray[np.intp], int]:
        """The samples of a microbatch, maybe none, and the number of samples in the whole minibatch."""
        minibatch = self.minibatch(step)
        size, parts = len(minibatch), self._microbatches
        return minibatch[microbatch * size // parts : (microbatch + 1) * size // parts], size
