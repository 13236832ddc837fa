"""Local steps: a lane, one microbatch of each step, is trained independently before lanes are averaged (Stich 2019)."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, end_of
from thalweg.contract.sums import Sums
from thalweg.learning import optimizers, schedules
from thalweg.learning.batch import size
from thalweg.learning.data.microbatches import Microbatches
from thalweg.learning.objective import Objective
from thalweg.v1 import job_pb2


class Lanes:
    """Trains the lanes of one job. Belongs to one thread.

    `spec` has its defaults filled in. A lane's result is a pure function of its arguments: no state is kept between calls.
    """

    def __init__(self, spec: job_pb2.JobSpec, objective: Objective, gathered: Microbatches, steps_per_epoch: int) -> None:
        self._spec = spec.optimizer
        self._optimizer = optimizers.make(spec.optimizer)
        self._reductions = optimizers.reductions(spec.optimizer)
        self._spans = optimizers.spans(spec.optimizer, objective.segments, objective.size)
        self._objective = objective
        self._constants = end_of(Kind.STATISTIC, objective.segments)
        self._gathered = gathered
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = spec.training.epochs * steps_per_epoch
        self._microbatches = spec.training.microbatches
        self._parameters: Slab = np.empty(objective.size, objective.dtype)
        self._gradient: Slab = np.empty(objective.size, objective.dtype)

    def train(self, start: Slab, steps: range, lane: int, out: Slab) -> Sums:
        """Trains from the parameters `start` on for some steps, with a fresh state of the job's optimizer.

        Writes to `out` by how much parameters and statistics fell, divided by the number of lanes, and 0 for constants; returns
        the sums of all steps, each taken before its update. A step in which the lane has no samples does not count, nor does the
        optimizer count it.
        """
        objective, parameters, gradient = self._objective, self._parameters, self._gradient
        parameters[...] = start
        state = self._optimizer.init(objective.size, objective.dtype)
        sums, taken = Sums(), 0
        # Values that are not finite show in the server's update.
        with np.errstate(over="ignore", invalid="ignore"):
            for step in steps:
                batch, _ = self._gathered(step, lane)
                samples = size(batch)
                if samples == 0:
                    continue
                sums += objective.gradient(parameters, batch, samples, (step, lane), gradient)
                spans = optimizers.reduced(
                    self._optimizer, self._reductions, parameters, gradient, state, taken, self._spans
                ).within(slice(0, objective.size))
                factor = schedules.factor(self._spec.schedule, step, self._steps_per_epoch, self._total_steps)
                rate = self._optimizer.learning_rate * factor
                optimizers.apply(self._optimizer, parameters, gradient, state, parameters, rate, taken, spans=spans)
                taken += 1
            np.subtract(start, parameters, out=out)
            out /= self._microbatches
            # Not subtracted, since they need not be finite.
            out[self._constants :] = 0
        return sums
