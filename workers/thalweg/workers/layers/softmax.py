"""The normalised exponential function."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, ModelError, Randomness, Shape


class Softmax(Layer):
    """exp(x) / sum(exp(x)) over the last axis, as torch.nn.Softmax(dim=-1)."""

    def build(self, shape: Shape) -> Shape:
        if not shape:
            raise ModelError(f"{self.path}: needs inputs with at least one axis, and a sample is a single number here")
        return shape

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        out: Slab = self.buffer("out", x.shape)
        self._out = out
        np.subtract(x, np.max(x, axis=-1, keepdims=True, initial=-np.inf), out=out)
        np.exp(out, out=out)
        out /= np.add.reduce(out, axis=-1, keepdims=True)
        return out

    def backward(self, gradient: Slab) -> Slab:
        """y (g - sum(g y))."""
        out: Slab = self.buffer("in", gradient.shape)
        np.multiply(gradient, self._out, out=out)
        along = np.add.reduce(out, axis=-1, keepdims=True)
        np.subtract(gradient, along, out=out)
        out *= self._out
        return out
