"""What follows from a job's specification and the facts about its data: steps, epochs, chunks, schedule."""

from thalweg.contract.channel import CHUNK_BYTES
from thalweg.server import schedules
from thalweg.server.messages import Facts
from thalweg.v1 import job_pb2

# Numerical differentiation shares out coordinates in whole chunks: so many for each worker wished for, that shares are even
# though coordinates of different layers take different times, and so few, that messages take little of the time.
NUMERICAL_CHUNKS = 8
_MOST_NUMERICAL_CHUNKS = 256


class Plan:
    """The course of a job, fixed before its first step."""

    def __init__(self, spec: job_pb2.JobSpec, facts: Facts) -> None:
        training = spec.training
        self.spec = spec
        self.elements = facts.elements
        self.samples = facts.train_samples
        self.validation_samples = facts.validation_samples
        self.classifier = facts.classifier
        self.microbatches = training.microbatches
        self.batch_size = min(training.batch_size, self.samples)
        self.steps_per_epoch = -(-self.samples // self.batch_size)
        self.epochs = training.epochs
        self.total_steps = self.epochs * self.steps_per_epoch
        self.numerical = training.gradient != "backpropagation"
        self.chunk_elements = CHUNK_BYTES // (8 if spec.model.dtype == "float64" else 4)
        if self.numerical:
            chunks = min(NUMERICAL_CHUNKS * training.workers, _MOST_NUMERICAL_CHUNKS)
            self.chunk_elements = min(self.chunk_elements, -(-self.elements // chunks))
        self.chunks = -(-self.elements // self.chunk_elements)

    def chunk_range(self, chunk: int) -> slice:
        """The elements of the slab that a chunk holds."""
        return slice(chunk * self.chunk_elements, min((chunk + 1) * self.chunk_elements, self.elements))

    def samples_of(self, step: int) -> int:
        """The number of samples of a step; the last step of an epoch takes what is left."""
        return min(self.batch_size, self.samples - step % self.steps_per_epoch * self.batch_size)

    def epoch_of(self, step: int) -> int:
        """The number of epochs that have ended when `step` updates are applied."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch has just ended when `step` updates are applied."""
        return step > 0 and step % self.steps_per_epoch == 0

    def schedule_factor(self, step: int) -> float:
        """The factor of the learning rate at a step."""
        return schedules.factor(self.spec.optimizer.schedule, step, self.steps_per_epoch, self.total_steps)
