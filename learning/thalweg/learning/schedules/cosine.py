"""Falls along half a cosine."""

import math

from thalweg.learning.schedules.base import Course, Within
from thalweg.v1 import job_pb2


def factor(spec: job_pb2.CosineSchedule, course: Course, within: Within) -> float:  # noqa: ARG001
    """From 1 at step 0 to `final_factor` at the job's end (Loshchilov and Hutter 2017, one cycle).

    As torch.optim.lr_scheduler.CosineAnnealingLR stepped once a step, with T_max the job's steps.
    """
    share = min(1.0, course.step / max(1, course.total_steps))
    return float(spec.final_factor + (1 - spec.final_factor) * (1 + math.cos(math.pi * share)) / 2)
