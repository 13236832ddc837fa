"""The logistic function."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, Randomness


class Sigmoid(Layer):
    """1 / (1 + exp(-x)), computed as (1 + tanh(x / 2)) / 2, which cannot overflow."""

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        out: Slab = self.buffer("out", x.shape)
        self._out = out
        np.multiply(x, 0.5, out=out)
        np.tanh(out, out=out)
        out *= 0.5
        out += 0.5
        return out

    def backward(self, gradient: Slab, gradients: dict[str, Slab], wanted: bool) -> Slab:
        """y (1 - y) times the gradient."""
        out: Slab = self.buffer("in", gradient.shape)
        np.subtract(1, self._out, out=out)
        out *= self._out
        out *= gradient
        return out
