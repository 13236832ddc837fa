"""Rises linearly, then follows another schedule."""

from thalweg.learning.schedules.base import Course, Within
from thalweg.v1 import job_pb2


def factor(spec: job_pb2.WarmupSchedule, course: Course, within: Within) -> float:
    """From `start_factor` at step 0 to 1 at step `steps` (Goyal et al. 2017), then `then` over the remaining steps."""
    if course.step < spec.steps:
        return float(spec.start_factor + (1 - spec.start_factor) * course.step / spec.steps)
    left = max(1, course.total_steps - spec.steps)
    return within(spec.then, course.step - spec.steps, course.steps_per_epoch, left)
