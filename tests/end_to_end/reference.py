"""Training as a plain loop: no server, no workers, no gRPC. What bulk-synchronous training must equal, bit for bit."""

from pathlib import Path

import numpy as np

from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.server import clipping, optimizers, schedules
from thalweg.v1 import job_pb2
from thalweg.workers import data
from thalweg.workers.data.sampling import Sampler
from thalweg.workers.model import Model
from thalweg.workers.numerical import NumericalDifferentiator


def reference(spec: job_pb2.JobSpec, upload: Path | None = None) -> tuple[Slab, list[float]]:
    """The final parameters and the loss of each step."""
    dataset = data.load(spec, lambda _: upload or Path())
    model = Model(spec.model, dataset.input_shape, spec.seed, one_hot=spec.data.one_hot)
    microbatches = spec.training.microbatches
    batch_size = min(spec.training.batch_size, len(dataset.train_x))
    sampler = Sampler(len(dataset.train_x), spec.training.batch_size, microbatches, spec.seed)
    steps_per_epoch = -(-len(dataset.train_x) // batch_size)
    total = steps_per_epoch * spec.training.epochs

    parameters = np.empty(model.size, model.dtype)
    model.initial(parameters)
    optimizer = optimizers.make(spec.optimizer)
    state = optimizer.init(model.size, model.dtype)
    scheme = spec.training.gradient
    numerical = None if scheme == "backpropagation" else NumericalDifferentiator(model, scheme)
    losses = []
    for step in range(total):
        model.bind(parameters)

        def leaf(microbatch: int, step: int = step) -> tuple[Slab, float, int]:
            indices, denominator = sampler.microbatch(step, microbatch)
            gradient = np.empty(model.size, model.dtype)
            x, y = dataset.train_x[indices], dataset.train_y[indices]
            task = (step, microbatch)
            if numerical:
                batch = numerical.at(parameters, x, y, task)
                numerical.differentiate(batch, denominator, slice(0, model.size), gradient)
                sums = batch.sums
            else:
                sums = model.loss_and_gradient(x, y, denominator, task, gradient)
            return gradient, sums.loss, sums.samples

        def add(a: tuple[Slab, float, int], b: tuple[Slab, float, int]) -> tuple[Slab, float, int]:
            return a[0] + b[0], a[1] + b[1], a[2] + b[2]

        gradient, loss, samples = tree.fold(tree.root(microbatches), microbatches, leaf, add)
        losses.append(loss / samples)
        if spec.optimizer.HasField("clip_global_norm"):
            scale = clipping.scale(clipping.squared_norm(gradient) ** 0.5, spec.optimizer.clip_global_norm)
            if scale != 1.0:
                gradient *= gradient.dtype.type(scale)
        rate = optimizer.learning_rate * schedules.factor(spec.optimizer.schedule, step, steps_per_epoch, total)
        optimizers.apply(optimizer, parameters, gradient, state, parameters, rate, step)
    return parameters, losses
