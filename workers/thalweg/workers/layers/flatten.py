"""Joins axes."""

import math

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, Randomness, Shape


class Flatten(Layer):
    """Joins all axes but the samples' into one, as torch.nn.Flatten."""

    def build(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        self._shape = x.shape
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def backward(self, gradient: Slab) -> Slab:
        return gradient.reshape(self._shape)
