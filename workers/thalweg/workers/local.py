"""Local steps: what a lane, which is one microbatch of each step, does by itself before lanes are averaged (Stich 2019)."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.learning import clipping, optimizers, schedules
from thalweg.learning.data.gathering import Gatherer
from thalweg.learning.sequential.model import Model
from thalweg.v1 import job_pb2


class Lanes:
    """Trains the lanes of one job. Belongs to one thread.

    `spec` has its defaults filled in. What a lane gives follows from its arguments alone: no state is kept from one to the next.
    """

    def __init__(self, spec: job_pb2.JobSpec, model: Model, gatherer: Gatherer, steps_per_epoch: int) -> None:
        self._spec = spec.optimizer
        self._optimizer = optimizers.make(spec.optimizer)
        self._model = model
        self._gatherer = gatherer
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = spec.training.epochs * steps_per_epoch
        self._microbatches = spec.training.microbatches
        self._parameters: Slab = np.empty(model.size, model.dtype)
        self._gradient: Slab = np.empty(model.size, model.dtype)

    def train(self, start: Slab, steps: range, lane: int, out: Slab) -> Sums:
        """Trains from the parameters `start` on for some steps, with a fresh state of the job's optimizer.

        Writes to `out` by how much the parameters fell, divided by the number of lanes; gives the sums of all steps, each taken
        before its update. A step of which the lane has no samples is none: the optimizer does not count it either.
        """
        model, parameters, gradient = self._model, self._parameters, self._gradient
        parameters[...] = start
        model.bind(parameters)
        state = self._optimizer.init(model.size, model.dtype)
        sums, taken = Sums(), 0
        # What is not finite shows in the server's update.
        with np.errstate(over="ignore", invalid="ignore"):
            for step in steps:
                x, y, _ = self._gatherer(step, lane)
                if len(x) == 0:
                    continue
                sums += model.loss_and_gradient(x, y, len(x), (step, lane), gradient)
                scale = 1.0
                if self._spec.HasField("clip_global_norm"):
                    scale = clipping.scale(clipping.squared_norm(gradient) ** 0.5, self._spec.clip_global_norm)
                factor = schedules.factor(self._spec.schedule, step, self._steps_per_epoch, self._total_steps)
                rate = self._optimizer.learning_rate * factor
                optimizers.apply(self._optimizer, parameters, gradient, state, parameters, rate, taken, scale)
                taken += 1
            np.subtract(start, parameters, out=out)
            out /= self._microbatches
        return sums
