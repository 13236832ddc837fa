"""Falls by a factor every epoch."""

from typing import Any

from thalweg.learning.schedules.base import Course


def factor(spec: Any, course: Course, within: object) -> float:  # noqa: ARG001
    """gamma ^ epoch, as torch.optim.lr_scheduler.ExponentialLR stepped once an epoch."""
    return float(spec.gamma**course.epoch)
