"""Optimizers: elementwise updates of a range of the parameters. Each is one small file and one line here."""

from typing import Any

import numpy as np

from thalweg.contract.layout import Slab, ranges
from thalweg.server.optimizers.adagrad import Adagrad
from thalweg.server.optimizers.adam import Adam
from thalweg.server.optimizers.adamw import AdamW
from thalweg.server.optimizers.base import BLOCK, Optimizer, State
from thalweg.server.optimizers.momentum import Momentum
from thalweg.server.optimizers.rmsprop import RMSprop
from thalweg.server.optimizers.sgd import SGD
from thalweg.v1 import job_pb2

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}

__all__ = ["OPTIMIZERS", "Optimizer", "State", "apply", "make", "settings"]


def settings(spec: job_pb2.Optimizer) -> Any:
    """The hyperparameters of the optimizer that a specification names. Raises ValueError if it names none."""
    kind = spec.WhichOneof("kind")
    if kind is None:
        raise ValueError("a complete specification names an optimizer")
    return getattr(spec, kind)


def make(spec: job_pb2.Optimizer) -> Optimizer:
    """The optimizer that a specification, with its defaults filled in, names. Raises ValueError if it names none."""
    hyperparameters = settings(spec)
    return OPTIMIZERS[str(spec.WhichOneof("kind"))](hyperparameters)


def apply(
    optimizer: Optimizer, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int
) -> None:
    """Updates a range of any length, in blocks that stay in the cache.

    All arrays are one-dimensional and of equal length and dtype. `out` may be `parameters` or not; `state` is changed in place;
    `gradient` may be overwritten. `learning_rate` is the scheduled one; `step` counts from 0. How a slab is cut into ranges does
    not change a bit of the result.
    """
    # What is not finite is no news here: whoever asked looks at the result.
    with np.errstate(all="ignore"):
        for block in ranges(parameters.size, BLOCK):
            states = {name: values[block] for name, values in state.items()}
            optimizer.update(parameters[block], gradient[block], states, out[block], learning_rate, step)
