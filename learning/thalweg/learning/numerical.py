"""Numerical differentiation: the gradient from differences of the loss, coordinate by coordinate.

The loss is evaluated in double precision whatever the model's dtype: in single precision a difference of losses has few digits
left. Each coordinate is computed independently, so it does not matter which others are computed with it.

Parameters alone have differences. The gradient by statistics and constants is 0, so that neither changes.
"""

from typing import NamedTuple

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, end_of
from thalweg.contract.sums import Sums
from thalweg.learning.batch import Batch, in_double, size
from thalweg.learning.objective import Objective, Staged
from thalweg.learning.randomness import Draw

# By what part of it a loss in double precision is rounded. Steps follow Press et al., Numerical Recipes, 5.7.
_EPSILON = float(np.finfo(np.float64).eps)


def central_step(epsilon: float) -> float:
    """The step that balances truncation and rounding, where losses are rounded by a part of `epsilon` (Press et al., 5.7)."""
    return float(epsilon ** (1 / 3))


CENTRAL_STEP = central_step(_EPSILON)


class Point(NamedTuple):
    """A batch at some parameters: what is computed once for all coordinates.

    `inputs` are those of the stages, if the objective has any. `sums` are the batch's.
    """

    batch: Batch
    draw: Draw | None
    inputs: list[Slab]
    sums: Sums


class NumericalDifferentiator:
    """Differentiates an objective by differences. Belongs to one thread.

    `objective` computes in double precision, or, where it is the user's code that computes, gives losses rounded by a part of
    `epsilon`.
    """

    def __init__(self, objective: Objective, scheme: str, epsilon: float = _EPSILON) -> None:
        self._objective = objective
        self._staged = objective if isinstance(objective, Staged) else None
        self._stages = self._staged.stages if self._staged else np.empty(0, np.intp)
        self._parameters: Slab = np.empty(objective.size, np.float64)
        # The number of coordinates with differences, the slab's first.
        self.coordinates = end_of(Kind.PARAMETER, objective.segments)
        self._step = {"numerical": central_step(epsilon), "numerical_forward": epsilon ** (1 / 2)}[scheme]
        # Evaluations of the loss for each coordinate.
        self.evaluations = {"numerical": 2, "numerical_forward": 1}[scheme]
        self._difference = {"numerical": self._central, "numerical_forward": self._forward}[scheme]

    def at(self, parameters: Slab, batch: Batch, draw: Draw | None) -> Point:
        """A batch at parameters. It can be used until this is called for other parameters."""
        self._parameters[...] = parameters
        if size(batch) == 0:
            return Point(batch, draw, [], Sums())
        batch = in_double(batch)
        if self._staged:
            return Point(batch, draw, *self._staged.trace(self._parameters, batch, draw))
        return Point(batch, draw, [], self._objective.measure(self._parameters, batch, draw))

    def differentiate(self, point: Point, denominator: int, where: slice, out: Slab) -> None:
        """Writes the gradient at the coordinates `where` of the sum of a batch's losses, divided by `denominator`.

        `out` has as many elements as `where`. Without samples the gradient is zero.
        """
        end = min(where.stop, self.coordinates) if size(point.batch) else where.start
        out[max(0, end - where.start) :] = 0
        for position in range(where.start, end):
            out[position - where.start] = self._difference(position, point) / denominator

    def _loss(self, position: int, value: float, point: Point) -> float:
        kept = self._parameters[position]
        self._parameters[position] = value
        if self._staged:
            # A parameter changes nothing before its own stage.
            stage = int(self._stages[position])
            loss = self._staged.loss_from(stage, point.inputs[stage], self._parameters, point.batch, point.draw)
        else:
            loss = self._objective.measure(self._parameters, point.batch, point.draw).loss
        self._parameters[position] = kept
        return loss

    def _central(self, position: int, point: Point) -> float:
        """(L(w + h) - L(w - h)) / 2h, with an error of order h²."""
        value = float(self._parameters[position])
        step = self._step * max(1.0, abs(value))
        # Divided by the difference of the rounded sums, which is not exactly 2h.
        above, below = value + step, value - step
        rise = self._loss(position, above, point) - self._loss(position, below, point)
        return float(rise / (above - below))

    def _forward(self, position: int, point: Point) -> float:
        """(L(w + h) - L(w)) / h, with an error of order h."""
        value = float(self._parameters[position])
        above = value + self._step * max(1.0, abs(value))
        return float((self._loss(position, above, point) - point.sums.loss) / (above - value))
