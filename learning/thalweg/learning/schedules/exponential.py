"""Falls by a factor every epoch."""

from thalweg.learning.schedules.base import Course, Within
from thalweg.v1 import job_pb2


def factor(spec: job_pb2.ExponentialSchedule, course: Course, within: Within) -> float:  # noqa: ARG001
    """gamma ^ epoch, as torch.optim.lr_scheduler.ExponentialLR stepped once an epoch."""
    return float(spec.gamma**course.epoch)
