"""Dropout."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, Randomness
from thalweg.workers.randomness import Purpose, generator


class Dropout(Layer):
    """While training, zeroes each activation with probability p and divides the others by 1 - p (Srivastava et al. 2014)."""

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        if randomness is None or self.spec.p == 0:
            self._mask = None
            return x
        self._mask = self._draw(randomness, x.shape)
        out: Slab = self.buffer("out", x.shape)
        np.multiply(x, self._mask, out=out)
        return out

    def _draw(self, randomness: Randomness, shape: tuple[int, ...]) -> Slab:
        """The factors of a task. The last task's are kept: numerical differentiation asks for them again and again."""
        key = (randomness, shape)
        if getattr(self, "_drawn", None) != key:
            self._drawn = key
            seed, step, microbatch = randomness
            numbers = generator(seed, Purpose.DROPOUT, step, microbatch, self.index).random(shape, np.float32)
            self._factors: Slab = (numbers >= self.spec.p).astype(self.dtype)
            self._factors *= 1 / (1 - self.spec.p)
        return self._factors

    def backward(self, gradient: Slab) -> Slab:
        if self._mask is None:
            return gradient
        out: Slab = self.buffer("in", gradient.shape)
        np.multiply(gradient, self._mask, out=out)
        return out
