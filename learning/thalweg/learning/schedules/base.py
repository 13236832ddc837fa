"""What a schedule is made from."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Course(NamedTuple):
    """Where a job is: the step, counted from 0, the steps of an epoch, and the steps in all."""

    step: float
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> int:
        """The number of epochs that have ended."""
        return int(self.step // self.steps_per_epoch)


# From the hyperparameters, the course, and a function for a schedule within: (specification, step, steps per epoch, steps).
Rule = Callable[[Any, Course, Callable[[Any, float, int, int], float]], float]
