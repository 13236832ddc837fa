"""A workload in PyTorch: model, loss and optimizer, on one thread."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from benchmarks import modules
from benchmarks.samples import batches
from benchmarks.workloads import Workload


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy."""
    return modules.loss(outputs, targets).mean() if outputs.ndim > 2 else nn.functional.cross_entropy(outputs, targets)


def model(workload: Workload) -> nn.Module:
    """The model, the same one in every process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if workload.module:
        made: nn.Module = getattr(modules, workload.module)()
        return made
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(workload.widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def optimizer(workload: Workload, parameters: Iterator[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    """The optimizer: PyTorch's fused kernel, which for Adam is several times as fast on CPUs, or its default."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[workload.optimizer]
    return kind(parameters, lr=workload.learning_rate, fused=fused or None)


def tensors(workload: Workload, worker: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One worker's batches."""
    for x, y in batches(workload, worker):
        yield torch.from_numpy(x), torch.from_numpy(y)
