"""The rectifier."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, Randomness


class Relu(Layer):
    """max(x, 0). The derivative at 0 is 0, as in PyTorch."""

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        out: Slab = self.buffer("out", x.shape)
        self._out = out
        np.maximum(x, 0, out=out)
        return out

    def backward(self, gradient: Slab) -> Slab:
        positive = np.greater(self._out, 0, out=self.buffer("positive", gradient.shape, bool))
        out: Slab = self.buffer("in", gradient.shape)
        np.multiply(gradient, positive, out=out)
        return out
