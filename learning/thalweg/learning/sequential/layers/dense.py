"""An affine map of the last axis."""

from collections.abc import Callable

import numpy as np

from thalweg.contract.layout import Slab, ranges
from thalweg.learning.randomness import Draw, Purpose, generator
from thalweg.learning.sequential.initializers import INITIALIZERS
from thalweg.learning.sequential.layers.base import Layer, ModelError, Shape
from thalweg.v1 import job_pb2

# Rows of a weight's gradient that are computed, and so can be sent, at once: with more, the product would not be faster.
# A constant, since a row's bits may depend on the rows that are computed with it.
_ROWS = 2048


class Dense(Layer[job_pb2.Dense]):
    """y = x Wᵀ + b, W of shape (units, inputs), b of shape (units), as torch.nn.Linear."""

    def build(self, shape: Shape) -> Shape:
        if not shape:
            raise ModelError(f"{self.path}: needs inputs with at least one axis, but a sample is a single number here")
        self._inputs, self._units, self._bias = shape[-1], self.spec.units, self.spec.bias
        if self._inputs == 0:
            raise ModelError(f"{self.path}: has no inputs: a sample has the shape {shape}")
        return (*shape[:-1], self._units)

    def shapes(self) -> dict[str, Shape]:
        weight = {"weight": (self._units, self._inputs)}
        return weight | ({"bias": (self._units,)} if self._bias else {})

    def initialize(self, parameters: dict[str, Slab]) -> None:
        drawn = generator(self.seed, Purpose.INITIALIZATION, *self.place.indices)
        INITIALIZERS[self.spec.initializer](drawn, parameters["weight"])
        if self._bias:
            parameters["bias"][...] = 0

    def make_room(self, shape: Shape) -> None:
        self._out: Slab = self.buffer("out", (*shape[:-1], self._units))
        self._in: Slab = self.buffer("in", shape)
        self._flat_out = self._out.reshape(-1, self._units)
        self._flat_in = self._in.reshape(-1, self._inputs)

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        self._x = x.reshape(self._flat_in.shape)
        np.matmul(self._x, self.parameters["weight"].T, out=self._flat_out)
        if self._bias:
            self._flat_out += self.parameters["bias"]
        return self._out

    def differentiate(self, gradient: Slab, gradients: dict[str, Slab], finished: Callable[[int], object]) -> None:
        flat, weight = gradient.reshape(self._flat_out.shape), gradients["weight"]
        for rows in ranges(self._units, _ROWS):
            np.matmul(flat[:, rows].T, self._x, out=weight[rows])
            if rows.stop < self._units:
                finished(rows.stop * self._inputs)
        if self._bias:
            np.add.reduce(flat, axis=0, out=gradients["bias"])

    def backward(self, gradient: Slab) -> Slab:
        np.matmul(gradient.reshape(self._flat_out.shape), self.parameters["weight"], out=self._flat_in)
        return self._in
