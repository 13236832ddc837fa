"""Dropout."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.randomness import Draw, Purpose, generator
from thalweg.learning.sequential.layers.base import Layer, Shape
from thalweg.v1 import job_pb2


class Dropout(Layer[job_pb2.Dropout]):
    """While training, zeroes each activation with probability p and divides the others by 1 - p (Srivastava et al. 2014)."""

    def make_room(self, shape: Shape) -> None:
        super().make_room(shape)
        self._factors: Slab = self.buffer("factors", shape)
        self._numbers: Slab = self.buffer("numbers", shape, np.float32)
        self._kept = self.buffer("kept", shape, bool)
        self._drawn: Draw | None = None

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        self._active = draw is not None and self.spec.p > 0
        if draw is None or not self._active:
            return x
        self._draw(draw)
        return np.multiply(x, self._factors, out=self._out)

    def _draw(self, draw: Draw) -> None:
        """Makes the factors of a task. The last ones are kept, since numerical differentiation needs them many times."""
        if self._drawn == draw:
            return
        self._drawn = draw
        numbers, probability = self._numbers, self.spec.p
        generator(self.seed, Purpose.DROPOUT, *draw, *self.place.indices).random(out=numbers, dtype=np.float32)
        self._factors[...] = np.greater_equal(numbers, probability, out=self._kept)
        self._factors *= 1 / (1 - probability)

    def backward(self, gradient: Slab) -> Slab:
        return np.multiply(gradient, self._factors, out=self._in) if self._active else gradient
