"""Falls by a factor every so many epochs."""

from typing import Any

from thalweg.learning.schedules.base import Course


def factor(spec: Any, course: Course, within: object) -> float:  # noqa: ARG001
    """gamma ^ floor(epoch / step_size), as torch.optim.lr_scheduler.StepLR stepped once an epoch."""
    return float(spec.gamma ** (course.epoch // spec.step_size))
