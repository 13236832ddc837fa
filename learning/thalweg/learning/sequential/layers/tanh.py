"""The hyperbolic tangent."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers.base import Layer
from thalweg.v1 import job_pb2


class Tanh(Layer[job_pb2.Tanh]):
    """tanh(x)."""

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        return np.tanh(x, out=self._out)

    def backward(self, gradient: Slab) -> Slab:
        """1 - y² times the gradient."""
        out = np.multiply(self._out, self._out, out=self._in)
        np.subtract(1, out, out=out)
        out *= gradient
        return out
