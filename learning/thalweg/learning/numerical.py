"""Numerical differentiation: the gradient from differences of the loss, coordinate by coordinate.

The loss is evaluated in double precision whatever the model's dtype: in single precision a difference of losses has few digits
left. Each coordinate is computed for itself, so it does not matter which others are computed with it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.model import Model

# Steps that balance truncation and rounding (Press et al., Numerical Recipes, 5.7).
CENTRAL_STEP = float(np.finfo(np.float64).eps) ** (1 / 3)
_FORWARD_STEP = float(np.finfo(np.float64).eps) ** (1 / 2)


class Batch(NamedTuple):
    """Some samples at some parameters: what the differences by all coordinates have in common.

    `inputs` are the layers' inputs. A parameter changes nothing before its own layer, so that is where its differences begin.
    """

    inputs: list[Slab]
    y: NDArray[Any]
    task: Draw | None
    sums: Sums


class NumericalDifferentiator:
    """Differentiates one model's loss by differences."""

    def __init__(self, model: Model, scheme: str) -> None:
        self._dtype = model.dtype
        self._model = Model(model.spec, model.input_shape, model.seed, one_hot=model.one_hot, dtype="float64")
        self._parameters = np.empty(model.size, np.float64)
        self._model.bind(self._parameters)
        # Of the loss, for each coordinate.
        self.evaluations = {"numerical": 2, "numerical_forward": 1}[scheme]
        self._difference = {"numerical": self._central, "numerical_forward": self._forward}[scheme]
        sizes = [int(np.prod(tensor.shape)) for tensor in model.layout.tensors]
        layers = [int(tensor.name.partition(".")[0]) for tensor in model.layout.tensors]
        self._layer_of = np.repeat(np.array(layers, np.int64), sizes)

    def at(self, parameters: Slab, x: Slab, y: NDArray[Any], task: Draw | None) -> Batch:
        """Samples at parameters. To be used until samples are taken at other ones."""
        self._parameters[...] = parameters
        if len(x) == 0:
            return Batch([], y, task, Sums())
        x, y = x.astype(np.float64), _double(y)
        *inputs, output = self._model.inputs(x, task)
        return Batch(inputs, y, task, self._model.sums_of(output, y))

    def differentiate(self, batch: Batch, denominator: int, where: slice, out: Slab) -> None:
        """Writes the gradient at the coordinates `where` of the sum of a batch's losses, divided by `denominator`.

        `out` has as many elements as `where`. Without samples the gradient is zero.
        """
        if not batch.inputs:
            out[...] = 0
            return
        for position in range(where.start, where.stop):
            out[position - where.start] = self._difference(position, batch) / denominator

    def _loss(self, position: int, value: float, batch: Batch) -> float:
        layer = self._layer_of[position]
        kept = self._parameters[position]
        self._parameters[position] = value
        loss = self._model.loss_from(layer, batch.inputs[layer], batch.y, batch.task)
        self._parameters[position] = kept
        return loss

    def _central(self, position: int, batch: Batch) -> float:
        """(L(w + h) - L(w - h)) / 2h, with an error of order h²."""
        value = float(self._parameters[position])
        step = CENTRAL_STEP * max(1.0, abs(value))
        # The difference of what the sums really are, not 2h: they were rounded.
        above, below = value + step, value - step
        rise = self._loss(position, above, batch) - self._loss(position, below, batch)
        return float(rise / (above - below))

    def _forward(self, position: int, batch: Batch) -> float:
        """(L(w + h) - L(w)) / h, with an error of order h."""
        value = float(self._parameters[position])
        above = value + _FORWARD_STEP * max(1.0, abs(value))
        return float((self._loss(position, above, batch) - batch.sums.loss) / (above - value))


def _double(y: NDArray[Any]) -> NDArray[Any]:
    return y if np.issubdtype(y.dtype, np.integer) else y.astype(np.float64)
