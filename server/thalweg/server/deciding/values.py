"""What events and decisions are made of: workers and their places, tasks, positions."""

from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from thalweg.contract.segments import Segment
from thalweg.contract.tree import Node
from thalweg.v1 import parameter_service_pb2

WorkerId = int
Split: TypeAlias = parameter_service_pb2.Split.ValueType
Scope: TypeAlias = parameter_service_pb2.Failure.Scope.ValueType


class Place(NamedTuple):
    """Where a worker runs: the fleet that started it and the node of the fleet's cluster, by their ids, and the node's name.

    All are empty where no fleet is known.
    """

    fleet: str = ""
    node: str = ""
    name: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """By what it is the same place."""
        return self.fleet, self.node


NOWHERE = Place()


class Facts(NamedTuple):
    """What the workers found out about a job's model and data.

    `segments` are the slab's tensors, without which there can be no groups of them. `numerical` says whether gradients are
    differences of the loss.
    """

    elements: int
    train_samples: int
    validation_samples: int
    metrics: tuple[str, ...]
    segments: tuple[Segment, ...] = ()
    numerical: bool = False
    test_samples: int = 0


class Task(NamedTuple):
    """A part of a step: the gradient of a node's microbatches, for the chunks from `first_chunk` up to `end_chunk`.

    `steps` is 1, except with local steps: there each microbatch takes this many steps of its own from `step` on.
    """

    step: int
    steps: int
    node: Node
    first_chunk: int
    end_chunk: int


class Position(NamedTuple):
    """Where training is when `version` updates are applied, as far as the parameters do not tell.

    `epoch_loss` and `epoch_samples` are the sums over the epoch so far; `applied` the steps that were applied out of order.
    """

    version: int
    epoch_loss: float
    epoch_samples: int
    applied: tuple[int, ...] = ()


class Drop(Enum):
    """Why a message was not used."""

    DUPLICATE = auto()  # it had come before
    LATE = auto()  # its step had been taken
    STALE_INCARNATION = auto()  # its worker had been given up
    UNKNOWN = auto()  # it answers no task


class EvaluationTask(NamedTuple):
    """The metrics at a version, of the samples from `first` up to `end`."""

    version: int
    split: Split
    first: int
    end: int
