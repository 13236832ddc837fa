"""The logistic function."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers.base import Layer
from thalweg.v1 import job_pb2


class Sigmoid(Layer[job_pb2.Sigmoid]):
    """1 / (1 + exp(-x)). Where exp overflows, far below zero, infinity gives the correct 0."""

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        out = np.negative(x, out=self._out)
        with np.errstate(over="ignore"):
            np.exp(out, out=out)
        out += 1
        return np.divide(1, out, out=out)

    def backward(self, gradient: Slab) -> Slab:
        """y (1 - y) times the gradient."""
        out = np.subtract(1, self._out, out=self._in)
        out *= self._out
        out *= gradient
        return out
