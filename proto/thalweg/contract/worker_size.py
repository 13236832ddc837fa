"""What a worker takes of its node, and what is left there."""

from dataclasses import dataclass, field
from typing import NamedTuple

from thalweg.v1 import job_pb2

# The parts of a GPU, as Ray counts them.
_PARTS = 10_000


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


@dataclass
class Free:
    """What is free of a node: CPU slots, whole GPUs, and parts of GPUs that workers share."""

    slots: int
    gpus: int
    shared: list[int] = field(default_factory=list)

    def has(self, size: Size) -> bool:
        """Whether there is room for a worker."""
        if self.slots < size.slots:
            return False
        if size.gpus >= 1:
            return self.gpus >= size.gpus
        return not size.gpus or self.gpus > 0 or max(self.shared, default=0) >= _parts(size)

    def take(self, size: Size) -> None:
        """Takes the room of a worker; a part of a GPU of the one with the least room for it."""
        self.slots -= size.slots
        if size.gpus >= 1:
            self.gpus -= int(size.gpus)
        elif size.gpus:
            parts = _parts(size)
            left = min((each for each in self.shared if each >= parts), default=_PARTS)
            if left in self.shared:
                self.shared.remove(left)
            else:
                self.gpus -= 1
            self.shared.append(left - parts)


def _parts(size: Size) -> int:
    # However little a worker takes, it takes some.
    return max(1, round(size.gpus * _PARTS))
