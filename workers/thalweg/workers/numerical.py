"""Numerical differentiation: the gradient from differences of the loss, coordinate by coordinate.

The loss is evaluated in double precision whatever the model's dtype: in single precision a difference of losses has few digits
left. Each coordinate is computed for itself, so it does not matter which others are computed with it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.workers.model import Model, Task

# Steps that balance truncation and rounding (Press et al., Numerical Recipes, 5.7).
CENTRAL_STEP = float(np.finfo(np.float64).eps) ** (1 / 3)
_FORWARD_STEP = float(np.finfo(np.float64).eps) ** (1 / 2)


class NumericalDifferentiator:
    """Differentiates one model's loss by differences."""

    def __init__(self, model: Model, scheme: str) -> None:
        self._dtype = model.dtype
        self._model = Model(model.spec, model.input_shape, model.seed, one_hot=model.one_hot, dtype="float64")
        self._parameters = np.empty(model.size, np.float64)
        self._model.bind(self._parameters)
        self._difference = {"numerical": self._central, "numerical_forward": self._forward}[scheme]
        sizes = [int(np.prod(tensor.shape)) for tensor in model.layout.tensors]
        layers = [int(tensor.name.partition(".")[0]) for tensor in model.layout.tensors]
        self._layer_of = np.repeat(np.array(layers, np.int64), sizes)

    def differentiate(
        self, parameters: Slab, x: Slab, y: NDArray[Any], denominator: int, task: Task | None, where: slice, out: Slab
    ) -> Sums:
        """Writes the gradient at the coordinates `where` of the sum of losses, divided by `denominator`; gives the sums.

        `out` has as many elements as `where`.
        """
        if len(x) == 0:
            out[...] = 0
            return Sums()
        self._parameters[...] = parameters
        x, y = x.astype(np.float64), _double(y)
        sums = self._model.sums(x, y, task)
        # A parameter changes nothing before its own layer: what that gets is computed once.
        inputs = self._model.inputs(x, task)
        for position in range(where.start, where.stop):
            layer = int(self._layer_of[position])
            out[position - where.start] = self._difference(position, layer, inputs[layer], y, task, sums.loss) / denominator
        return sums

    def _loss(self, position: int, value: float, layer: int, x: Slab, y: NDArray[Any], task: Task | None) -> float:
        kept = self._parameters[position]
        self._parameters[position] = value
        loss = self._model.loss_from(layer, x, y, task)
        self._parameters[position] = kept
        return loss

    def _central(self, position: int, layer: int, x: Slab, y: NDArray[Any], task: Task | None, _: float) -> float:
        """(L(w + h) - L(w - h)) / 2h, with an error of order h²."""
        value = float(self._parameters[position])
        step = CENTRAL_STEP * max(1.0, abs(value))
        # The difference of what the sums really are, not 2h: they were rounded.
        above, below = value + step, value - step
        rise = self._loss(position, above, layer, x, y, task) - self._loss(position, below, layer, x, y, task)
        return float(rise / (above - below))

    def _forward(self, position: int, layer: int, x: Slab, y: NDArray[Any], task: Task | None, loss: float) -> float:
        """(L(w + h) - L(w)) / h, with an error of order h."""
        value = float(self._parameters[position])
        above = value + _FORWARD_STEP * max(1.0, abs(value))
        return float((self._loss(position, above, layer, x, y, task) - loss) / (above - value))


def _double(y: NDArray[Any]) -> NDArray[Any]:
    return y if np.issubdtype(y.dtype, np.integer) else y.astype(np.float64)
