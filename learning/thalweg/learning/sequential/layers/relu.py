"""The rectifier."""

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers.base import Layer, Shape
from thalweg.v1 import job_pb2


class Relu(Layer[job_pb2.Relu]):
    """max(x, 0). The derivative at 0 is 0, as in PyTorch."""

    def make_room(self, shape: Shape) -> None:
        super().make_room(shape)
        self._positive: NDArray[np.bool_] = self.buffer("positive", shape, bool)

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        return np.maximum(x, 0, out=self._out)

    def backward(self, gradient: Slab) -> Slab:
        np.greater(self._out, 0, out=self._positive)
        np.multiply(gradient, self._positive, out=self._in)
        return self._in
