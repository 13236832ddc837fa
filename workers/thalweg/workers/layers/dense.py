"""An affine map of the last axis."""

from collections.abc import Callable

import numpy as np

from thalweg.contract.layout import Slab, ranges
from thalweg.workers.initializers import INITIALIZERS
from thalweg.workers.layers.base import Layer, ModelError, Randomness, Shape
from thalweg.workers.randomness import Purpose, generator

# Rows of a weight's gradient that are computed, and so can be sent, at once: so many that cutting the product makes it no slower.
# A constant, for a row's bits may depend on the rows that are computed with it.
_ROWS = 1024


class Dense(Layer):
    """y = x Wᵀ + b, W of shape (units, inputs), b of shape (units), as torch.nn.Linear."""

    def build(self, shape: Shape) -> Shape:
        if not shape:
            raise ModelError(f"{self.path}: needs inputs with at least one axis, and a sample is a single number here")
        self._inputs = shape[-1]
        if self._inputs == 0:
            raise ModelError(f"{self.path}: gets no inputs: a sample has the shape {shape}")
        return (*shape[:-1], self.spec.units)

    def shapes(self) -> dict[str, Shape]:
        weight = {"weight": (self.spec.units, self._inputs)}
        return weight | ({"bias": (self.spec.units,)} if self.spec.bias else {})

    def initialize(self, seed: int, parameters: dict[str, Slab]) -> None:
        INITIALIZERS[self.spec.initializer](generator(seed, Purpose.INITIALIZATION, self.index), parameters["weight"])
        if self.spec.bias:
            parameters["bias"][...] = 0

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        self._shape = x.shape
        self._x = x.reshape(-1, self._inputs)
        out: Slab = self.buffer("out", (*x.shape[:-1], self.spec.units))
        flat = out.reshape(-1, self.spec.units)
        np.matmul(self._x, self.parameters["weight"].T, out=flat)
        if self.spec.bias:
            flat += self.parameters["bias"]
        return out

    def differentiate(self, gradient: Slab, gradients: dict[str, Slab], finished: Callable[[int], object]) -> None:
        flat, weight = gradient.reshape(-1, self.spec.units), gradients["weight"]
        for rows in ranges(self.spec.units, _ROWS):
            np.matmul(flat[:, rows].T, self._x, out=weight[rows])
            if rows.stop < self.spec.units:
                finished(rows.stop * self._inputs)
        if self.spec.bias:
            np.add.reduce(flat, axis=0, out=gradients["bias"])

    def backward(self, gradient: Slab) -> Slab:
        out: Slab = self.buffer("in", self._shape)
        np.matmul(gradient.reshape(-1, self.spec.units), self.parameters["weight"], out=out.reshape(-1, self._inputs))
        return out
