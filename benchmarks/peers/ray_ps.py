"""Ray's parameter server of actors, as its documentation shows it, with synchronous updates: a server and two workers.

What differs from the example is the model, the samples, one thread per actor, and PyTorch's fused optimizer.
"""

import argparse
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.peers import torch_model
from benchmarks.program import Rate, run, timed
from benchmarks.workloads import WORKERS, Workload

# As often as the example evaluates its model; here the driver only waits, so that calls do not pile up.
_WAIT_EVERY = 10

Gradients = list[Any]
Weights = dict[str, torch.Tensor]


class ParameterServer:
    """Holds the model and applies gradients."""

    def __init__(self, workload: Workload) -> None:
        self.model = torch_model.model(workload)
        self.optimizer = torch_model.optimizer(workload, self.model.parameters(), fused=True)

    def apply_gradients(self, *gradients: Gradients) -> Weights:
        """One step. Gives the weights after it."""
        mean = [np.stack(of_one).mean(axis=0) for of_one in zip(*gradients, strict=True)]
        self.optimizer.zero_grad()
        for parameter, gradient in zip(self.model.parameters(), mean, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        self.optimizer.step()
        return self.get_weights()

    def get_weights(self) -> Weights:
        """The weights as they are."""
        return {name: value.cpu() for name, value in self.model.state_dict().items()}


class DataWorker:
    """Computes gradients."""

    def __init__(self, workload: Workload, worker: int) -> None:
        self.model = torch_model.model(workload)
        self.source = torch_model.tensors(workload, worker)

    def compute_gradients(self, weights: Weights) -> Gradients:
        """The gradient at some weights on the next batch."""
        self.model.load_state_dict(weights)
        x, y = next(self.source)
        self.model.zero_grad()
        torch_model.loss(self.model(x), y).backward()
        return [None if p.grad is None else p.grad.data.cpu().numpy() for p in self.model.parameters()]


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """Steps of all together."""
    ray.init("local", num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False, logging_level="error")
    server = ray.remote(ParameterServer).remote(workload)
    workers = [ray.remote(DataWorker).remote(workload, worker) for worker in range(WORKERS)]
    weights = server.get_weights.remote()

    def steps() -> None:
        nonlocal weights
        for _ in range(_WAIT_EVERY):
            weights = server.apply_gradients.remote(*[worker.compute_gradients.remote(weights) for worker in workers])
        ray.wait([weights], fetch_local=False)

    rate = timed(steps, options.seconds, _WAIT_EVERY)
    ray.shutdown()
    return rate


if __name__ == "__main__":
    run(measure)
