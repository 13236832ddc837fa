"""The normalised exponential function."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers.base import Layer, ModelError, Shape
from thalweg.v1 import job_pb2


class Softmax(Layer[job_pb2.Softmax]):
    """exp(x) / sum(exp(x)) over the last axis, as torch.nn.Softmax(dim=-1)."""

    def build(self, shape: Shape) -> Shape:
        if not shape:
            raise ModelError(f"{self.path}: needs inputs with at least one axis, but a sample is a single number here")
        return shape

    def make_room(self, shape: Shape) -> None:
        super().make_room(shape)
        self._along: Slab = self.buffer("along", (*shape[:-1], 1))

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        np.maximum.reduce(x, axis=-1, keepdims=True, initial=-np.inf, out=self._along)
        out = np.subtract(x, self._along, out=self._out)
        np.exp(out, out=out)
        out /= np.add.reduce(out, axis=-1, keepdims=True, out=self._along)
        return out

    def backward(self, gradient: Slab) -> Slab:
        """y (g - sum(g y))."""
        out = np.multiply(gradient, self._out, out=self._in)
        np.add.reduce(out, axis=-1, keepdims=True, out=self._along)
        np.subtract(gradient, self._along, out=out)
        out *= self._out
        return out
