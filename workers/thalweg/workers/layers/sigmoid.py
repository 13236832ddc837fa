"""The logistic function."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, Randomness


class Sigmoid(Layer):
    """1 / (1 + exp(-x)). Where exp overflows, far below zero, its infinity gives the right 0."""

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        out: Slab = self.buffer("out", x.shape)
        self._out = out
        np.negative(x, out=out)
        with np.errstate(over="ignore"):
            np.exp(out, out=out)
        out += 1
        np.divide(1, out, out=out)
        return out

    def backward(self, gradient: Slab) -> Slab:
        """y (1 - y) times the gradient."""
        out: Slab = self.buffer("in", gradient.shape)
        np.subtract(1, self._out, out=out)
        out *= self._out
        out *= gradient
        return out
