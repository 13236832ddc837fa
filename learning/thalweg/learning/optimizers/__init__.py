"""Optimizers: updates of a range of the parameters, and the reductions before them. Each is one small file and one line here."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from thalweg.contract.segments import Segment
from thalweg.learning import clipping
from thalweg.learning.optimizers import groups
from thalweg.learning.optimizers.adagrad import Adagrad
from thalweg.learning.optimizers.adam import Adam
from thalweg.learning.optimizers.adamw import AdamW
from thalweg.learning.optimizers.base import Hyperparameters, Optimizer, OptimizerState
from thalweg.learning.optimizers.groups import Spans
from thalweg.learning.optimizers.lamb import Lamb
from thalweg.learning.optimizers.momentum import Momentum
from thalweg.learning.optimizers.norms import Share, block_sums, factors, in_turn, reduced
from thalweg.learning.optimizers.rmsprop import RMSprop
from thalweg.learning.optimizers.sgd import SGD
from thalweg.learning.optimizers.updates import apply, prepare
from thalweg.learning.reductions import Reduction
from thalweg.v1 import job_pb2

OPTIMIZERS: dict[str, type[Optimizer[Hyperparameters]]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "lamb": Lamb,
}

AnyOptimizer: TypeAlias = Optimizer[Hyperparameters]

__all__ = [
    "OPTIMIZERS",
    "AnyOptimizer",
    "Optimizer",
    "OptimizerState",
    "Share",
    "Spans",
    "apply",
    "block_sums",
    "factors",
    "in_turn",
    "make",
    "mistake",
    "prepare",
    "reduced",
    "reductions",
    "settings",
    "spans",
]


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


def reductions(spec: job_pb2.Optimizer) -> tuple[Reduction, ...]:
    """What a step needs to know of the whole slab or of whole segments before it can be applied, in this order."""
    clip = (clipping.reduction(spec.clip_global_norm),) if spec.HasField("clip_global_norm") else ()
    return clip + make(spec).reductions


def spans(
    spec: job_pb2.Optimizer, segments: Sequence[Segment], elements: int, also_frozen: Sequence[job_pb2.Group] = ()
) -> Spans:
    """The ranges of a slab that a complete specification's groups update differently: one range where there are no groups.

    Where a reduction is per segment, each segment is a range. Tensors that groups of `also_frozen` freeze are frozen too. Raises
    ValueError if the segments have another number of elements.
    """
    by_segment = any(reduction.per_segment for reduction in reductions(spec))
    return groups.spans(spec.groups, float(settings(spec).weight_decay), segments, elements, also_frozen, by_segment)


def mistake(spec: job_pb2.JobSpec, segments: Iterable[Segment]) -> str:
    """What is wrong with a job's groups for a model of these segments, after the field's path; empty if nothing is."""
    names = [segment.name for segment in segments]
    inner = groups.unmatched(spec.optimizer.groups, names, "optimizer.groups")
    return inner or groups.unmatched(spec.training.synchrony.local.outer.groups, names, "training.synchrony.local.outer.groups")
