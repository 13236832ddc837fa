"""Modules that are compiled, with all that a module may have. A program prints what they compute, the last first."""

import hashlib
import json
import sys
from typing import Any

import numpy as np
import torch
from google.protobuf import json_format
from torch import Tensor, nn
from torch.nn import functional

from tests.learning.batches import batch, schema_of
from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.learning import registry
from thalweg.learning.batch import Batch
from thalweg.learning.data import Arrays
from thalweg.learning.objective import Objective
from thalweg.learning.randomness import Draw
from thalweg.server import validation
from thalweg.v1 import job_pb2

_HERE = "tests.learning.kinds.compiled"
# (case, samples, (step, microbatch)), where the last microbatch of an epoch is smaller.
Task = tuple[str, int, Draw]
TASKS: list[Task] = [
    ("convolutional", 6, (0, 0)),
    ("convolutional", 4, (1, 1)),
    ("gpt", 4, (1, 1)),
]


def convolutional() -> nn.Module:
    """Batch normalization, whose buffers training changes, and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)
    )


class Gpt(nn.Module):
    """Attention with a mask, tied weights, dropout, a frozen parameter, and one that is not used."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(7, 8), nn.Embedding(6, 8)
        self.unused = nn.Linear(2, 2)
        self.norm, self.attention, self.drop = nn.LayerNorm(8), nn.Linear(8, 24), nn.Dropout(0.3)
        self.scale = nn.Parameter(torch.full((8,), 0.5), requires_grad=False)
        self.register_buffer("mask", torch.triu(torch.full((6, 6), float("-inf")), 1))
        self.out = nn.Linear(8, 7, bias=False)
        self.out.weight = self.bytes.weight

    def forward(self, x: Tensor) -> Tensor:
        values = self.bytes(x) + self.positions(torch.arange(x.shape[1]))
        query, key, value = self.attention(self.norm(values)).chunk(3, -1)
        found = functional.scaled_dot_product_attention(query, key, value, self.mask)
        logits: Tensor = self.out(values + self.drop(found) * self.scale)
        return logits


def gpt() -> nn.Module:
    return Gpt()


def position_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each sample."""
    return functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none").mean(1)


LOSSES = {"convolutional": "softmax_cross_entropy", "gpt": f"{_HERE}:position_loss"}


def samples_of(case: str, number: int) -> Batch:
    rng = np.random.default_rng(number)
    if case == "gpt":
        return batch(rng.integers(0, 7, (number, 6)), rng.integers(0, 7, (number, 6)))
    return batch(rng.normal(size=(number, 1, 6, 6)).astype(np.float32), rng.integers(0, 3, number))


def spec_of(case: str, **model: Any) -> job_pb2.JobSpec:
    made = {"torch": {"entrypoint": f"{_HERE}:{case}"}, "loss": LOSSES[case], **model}
    fields = {"model": made, "data": {"builtin": "digits"}, "optimizer": {"sgd": {}}, "seed": 7}
    return validation.complete(json_format.ParseDict(fields, job_pb2.JobSpec()))


def objective_of(case: str, **model: Any) -> Objective:
    """The objective of a case, compiled unless `model` says otherwise."""
    objective = registry.objective(spec_of(case, **{"compile": True, **model}), schema_of(samples_of(case, 1)))
    objective.check(Arrays(samples_of(case, 2)))
    return objective


def start(objective: Objective) -> Slab:
    """The initial parameters, in memory that can only be read, as that of a server."""
    at: Slab = np.empty(objective.size, objective.dtype)
    objective.initialize(at)
    at.flags.writeable = False
    return at


def gradient(objective: Objective, at: Slab, task: Task) -> tuple[Slab, Sums]:
    case, number, draw = task
    out = np.full(objective.size, np.nan, objective.dtype)
    return out, objective.gradient(at, samples_of(case, number), 10, draw, out)


def digest(objective: Objective, at: Slab, task: Task) -> str:
    """That of a gradient and its sums."""
    out, sums = gradient(objective, at, task)
    return hashlib.sha256(out.tobytes() + repr(sums).encode()).hexdigest()


def main() -> None:
    found = []
    objectives: dict[str, Objective] = {}
    with registry.kind_of(spec_of("gpt")).settings(1):
        for task in reversed(TASKS):
            objective = objectives.setdefault(task[0], objective_of(task[0]))
            found.append(digest(objective, start(objective), task))
    sys.stdout.write(json.dumps(found[::-1]))


if __name__ == "__main__":
    main()
