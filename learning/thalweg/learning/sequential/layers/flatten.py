"""Joins axes."""

import math

from thalweg.contract.layout import Slab
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers.base import Layer, Shape
from thalweg.v1 import job_pb2


class Flatten(Layer[job_pb2.Flatten]):
    """Joins all axes but the samples' into one, as torch.nn.Flatten."""

    def build(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def make_room(self, shape: Shape) -> None:
        self._shape, self._flat = shape, (shape[0], math.prod(shape[1:]))

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        return x.reshape(self._flat)

    def backward(self, gradient: Slab) -> Slab:
        return gradient.reshape(self._shape)
