"""The hyperbolic tangent."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, Randomness


class Tanh(Layer):
    """tanh(x)."""

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        out: Slab = self.buffer("out", x.shape)
        self._out = out
        np.tanh(x, out=out)
        return out

    def backward(self, gradient: Slab) -> Slab:
        """1 - y² times the gradient."""
        out: Slab = self.buffer("in", gradient.shape)
        np.multiply(self._out, self._out, out=out)
        np.subtract(1, out, out=out)
        out *= gradient
        return out
