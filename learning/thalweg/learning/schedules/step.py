"""Falls by a factor every n epochs."""

from thalweg.learning.schedules.base import Course, Within
from thalweg.v1 import job_pb2


def factor(spec: job_pb2.StepSchedule, course: Course, within: Within) -> float:  # noqa: ARG001
    """gamma ^ floor(epoch / step_size), as torch.optim.lr_scheduler.StepLR stepped once an epoch."""
    return float(spec.gamma ** (course.epoch // spec.step_size))
