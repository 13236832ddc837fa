"""The interface of a schedule."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from thalweg.v1 import job_pb2


class Course(NamedTuple):
    """A job's progress: the step, counted from 0, the steps of an epoch, and the total number of steps."""

    step: float
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> int:
        """The number of epochs that have ended."""
        return int(self.step // self.steps_per_epoch)


# The factor of a schedule within another one: from its specification, and (step, steps per epoch, steps).
Within = Callable[[job_pb2.Schedule, float, int, int], float]
# The message of the contract that describes a schedule.
H_contra = TypeVar("H_contra", contravariant=True)


class Rule(Protocol[H_contra]):
    """The factor of the learning rate, from the schedule's hyperparameters."""

    def __call__(self, hyperparameters: H_contra, course: Course, within: Within, /) -> float: ...
