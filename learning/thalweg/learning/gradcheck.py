"""Compares a model's backpropagation with numerical differentiation, in double precision, tensor by tensor."""

from typing import NamedTuple

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, elements
from thalweg.learning import registry
from thalweg.learning.batch import in_double, size
from thalweg.learning.data import Arrays, Dataset
from thalweg.learning.numerical import CENTRAL_STEP, NumericalDifferentiator
from thalweg.v1 import job_pb2

TOLERANCE = 1e-6
# The most coordinates of one tensor that are checked. In a larger one they are evenly spread.
MAX_COORDINATES = 2000
# Samples that the loss is taken over.
SAMPLES = 8
# Rounding of the loss changes a difference by at most this, with a margin. If a gradient is so small that this is more than the
# tolerance, the difference cannot be more exact.
_NOISE = 8 * float(np.finfo(np.float64).eps) / (2 * CENTRAL_STEP)


class Row(NamedTuple):
    """What was found for one tensor.

    `relative_error` is the largest difference between the two gradients, divided by the largest absolute value of either in the
    tensor, or by what rounding alone would be the tolerance's share of, whichever is greater.
    """

    tensor: str
    shape: tuple[int, ...]
    checked: int
    absolute_error: float
    relative_error: float

    @property
    def passed(self) -> bool:
        """Whether the error is below the tolerance."""
        return self.relative_error < TOLERANCE


def gradcheck(spec: job_pb2.JobSpec, dataset: Dataset) -> list[Row]:
    """One row for each tensor of a job's model that is descended, at its initial parameters and on its first training samples.

    Dropout is drawn as in the first task. Raises MistakeError if the model does not fit the data.
    """
    objective = registry.objective(spec, dataset.schema, "float64", substitutes=True)
    batch = in_double(dataset.train.take(slice(0, SAMPLES)))
    objective.check(Arrays(batch))
    samples = size(batch)
    parameters: Slab = np.empty(objective.size, np.float64)
    objective.initialize(parameters)
    # Biases start at zero, where a relu may sit on its kink and a mistake may be hidden; so all is moved a little.
    descended = [segment for segment in objective.segments if segment.kind is Kind.PARAMETER]
    count = elements(descended)
    parameters[:count] += np.random.default_rng(spec.seed).normal(0, 0.01, count)
    backpropagated: Slab = np.empty(objective.size, np.float64)
    loss = objective.gradient(parameters, batch, samples, (0, 0), backpropagated).loss / samples
    numerical = NumericalDifferentiator(objective, "numerical")
    point = numerical.at(parameters, batch, (0, 0))
    noise = _NOISE * max(1.0, abs(loss)) / TOLERANCE

    rows, start = [], 0
    for segment in descended:
        positions = start + np.linspace(0, segment.size - 1, min(segment.size, MAX_COORDINATES)).astype(np.int64)
        found = np.empty(1)
        differences = np.empty(len(positions))
        for i, position in enumerate(positions):
            numerical.differentiate(point, samples, slice(int(position), int(position) + 1), found)
            differences[i] = found[0]
        error = _largest(differences - backpropagated[positions])
        scale = max(_largest(differences), _largest(backpropagated[positions]), noise)
        rows.append(Row(segment.name, segment.shape, len(positions), error, error / scale if error else 0.0))
        start += segment.size
    return rows


def _largest(values: Slab) -> float:
    """The largest absolute value; 0 of no values."""
    return float(np.max(np.abs(values), initial=0.0))
