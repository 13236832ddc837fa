"""Optimizers: elementwise updates of a range of the parameters. Each is one small file and one line here."""

from typing import TypeAlias

from thalweg.learning.optimizers.adagrad import Adagrad
from thalweg.learning.optimizers.adam import Adam
from thalweg.learning.optimizers.adamw import AdamW
from thalweg.learning.optimizers.applying import apply
from thalweg.learning.optimizers.base import Hyperparameters, Optimizer, OptimizerState
from thalweg.learning.optimizers.momentum import Momentum
from thalweg.learning.optimizers.rmsprop import RMSprop
from thalweg.learning.optimizers.sgd import SGD
from thalweg.v1 import job_pb2

OPTIMIZERS: dict[str, type[Optimizer[Hyperparameters]]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}

AnyOptimizer: TypeAlias = Optimizer[Hyperparameters]

__all__ = ["OPTIMIZERS", "AnyOptimizer", "Optimizer", "OptimizerState", "apply", "make", "settings"]


def settings(spec: job_pb2.Optimizer) -> Hyperparameters:
    """The hyperparameters of the optimizer that a specification names. Raises ValueError if it names none."""
    kind = spec.WhichOneof("kind")
    if kind is None:
        raise ValueError("a complete specification names an optimizer")
    found: Hyperparameters = getattr(spec, kind)
    return found


def make(spec: job_pb2.Optimizer) -> AnyOptimizer:
    """The optimizer that a specification, with its defaults filled in, names. Raises ValueError if it names none."""
    hyperparameters = settings(spec)
    return OPTIMIZERS[str(spec.WhichOneof("kind"))](hyperparameters)
