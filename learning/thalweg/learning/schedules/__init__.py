"""Learning-rate schedules: a factor of the learning rate, from the step. Each is one small file and one line here."""

from typing import Never

from thalweg.learning.schedules import constant, cosine, exponential, step, warmup
from thalweg.learning.schedules.base import Course, Rule
from thalweg.v1 import job_pb2

SCHEDULES: dict[str, Rule[Never]] = {
    "constant": constant.factor,
    "step": step.factor,
    "exponential": exponential.factor,
    "cosine": cosine.factor,
    "warmup": warmup.factor,
}

__all__ = ["SCHEDULES", "Course", "factor"]


def factor(spec: job_pb2.Schedule, step: float, steps_per_epoch: int, total_steps: int) -> float:
    """The factor at a step, counted from 0, of the schedule that a specification, with its defaults filled in, names."""
    kind = spec.WhichOneof("kind")
    if kind is None:
        raise ValueError("a complete specification names a schedule")
    return SCHEDULES[kind](getattr(spec, kind), Course(step, steps_per_epoch, total_steps), factor)
