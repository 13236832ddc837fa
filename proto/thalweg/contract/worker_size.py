"""What a worker takes of its node."""

from typing import NamedTuple

from thalweg.v1 import job_pb2


class Size(NamedTuple):
    """CPU slots; and GPUs, a whole number or a part of one."""

    slots: int
    gpus: float = 0.0

    def __str__(self) -> str:
        if not self.gpus:
            return f"{self.slots} CPU slots"
        slots = f"{self.slots} CPU slot{'' if self.slots == 1 else 's'}"
        return f"{slots} and {self.gpus:g} GPU{'' if self.gpus <= 1 else 's'} on one node"


def size_of(spec: job_pb2.JobSpec) -> Size:
    """What each worker of a job takes, whose specification is complete."""
    training = spec.training
    return Size(training.resources.cpus or training.threads_per_worker, training.resources.gpus)
