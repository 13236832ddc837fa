"""What follows from a job's specification and the facts about its data: steps, epochs, chunks, schedule, groups, reductions."""

from functools import cached_property

from thalweg.contract import codecs
from thalweg.contract.endpoint import CHUNK_BYTES
from thalweg.contract.segments import Kind, end_of
from thalweg.learning import optimizers, schedules
from thalweg.server.deciding.chunks import bits
from thalweg.server.deciding.values import Facts
from thalweg.v1 import job_pb2

# Numerical differentiation shares out coordinates in whole chunks: so many for each worker wished for, that shares are even
# though coordinates of different layers take different times, and so few, that messages take little of the time.
NUMERICAL_CHUNKS = 8
_MAX_NUMERICAL_CHUNKS = 256


class Plan:
    """The course of a job, fixed before its first step."""

    def __init__(self, spec: job_pb2.JobSpec, facts: Facts) -> None:
        training = spec.training
        self.spec = spec
        self.elements = facts.elements
        self.samples = facts.train_samples
        self.validation_samples = facts.validation_samples
        self.test_samples = facts.test_samples
        self.metrics = facts.metrics
        self.microbatches = training.microbatches
        self.batch_size = min(training.batch_size, self.samples)
        self.steps_per_epoch = -(-self.samples // self.batch_size)
        self.epochs = training.epochs
        local = training.synchrony.HasField("local")
        # With local steps, a step of the server is a round of this many minibatches.
        self.local_steps = training.synchrony.local.steps if local else 1
        self.optimizer = training.synchrony.local.outer if local else spec.optimizer
        self.segments = facts.segments
        # The slab's first elements, which are descended, and which the codec encodes.
        self.parameters = end_of(Kind.PARAMETER, facts.segments) if facts.segments else facts.elements
        # Where the slab's constants begin, of which a gradient has nothing.
        self.constants = end_of(Kind.STATISTIC, facts.segments) if facts.segments else facts.elements
        self.reductions = optimizers.reductions(self.optimizer)
        # What lanes do not move, the outer optimizer must not move either.
        also_frozen = spec.optimizer.groups if local else ()
        self.spans = optimizers.spans(self.optimizer, facts.segments, facts.elements, also_frozen)
        self._minibatches = self.epochs * self.steps_per_epoch
        self.total_steps = -(-self._minibatches // self.local_steps)
        self.numerical = facts.numerical or training.gradient != "backpropagation"
        # Where encoding rounds, each microbatch's gradient is sent separately: the division among workers changes no rounding.
        self.per_microbatch = not codecs.exact(spec)
        self.chunk_elements = CHUNK_BYTES // (8 if spec.model.dtype == "float64" else 4)
        if self.numerical:
            chunks = min(NUMERICAL_CHUNKS * training.workers, _MAX_NUMERICAL_CHUNKS)
            self.chunk_elements = min(self.chunk_elements, -(-self.elements // chunks))
        self.chunks = -(-self.elements // self.chunk_elements)
        # The chunks that updates change, in part at least, and those after them, which hold constants alone.
        self.changing = range(-(-self.constants // self.chunk_elements))
        self.constant = range(self.changing.stop, self.chunks)

    @cached_property
    def sent(self) -> int:
        """The chunks that a gradient consists of, as a set.

        Of those that hold constants alone only the slab's last one is among them, with which the sums come.
        """
        # Not before it is known that there is memory: a model that no memory holds has more chunks than a set can have.
        return bits(self.changing) | bits(range(self.chunks)[-1:])

    def chunk_range(self, chunk: int) -> slice:
        """The elements of the slab that a chunk holds."""
        return slice(chunk * self.chunk_elements, min((chunk + 1) * self.chunk_elements, self.elements))

    def changing_elements(self, chunk: int) -> int:
        """How many elements of a chunk updates change; after them are constants."""
        start = chunk * self.chunk_elements
        return max(0, min(start + self.chunk_elements, self.constants) - start)

    def minibatch(self, version: int) -> int:
        """The first minibatch of the step after `version`; each step takes one, except with local steps."""
        return min(version * self.local_steps, self._minibatches)

    def version_of(self, minibatch: int) -> int:
        """The version whose step begins with a minibatch."""
        return minibatch // self.local_steps

    def samples_of(self, version: int) -> int:
        """The number of samples of the step after `version`; the last minibatch of an epoch takes what is left."""
        return sum(
            min(self.batch_size, self.samples - minibatch % self.steps_per_epoch * self.batch_size)
            for minibatch in range(self.minibatch(version), self.minibatch(version + 1))
        )

    def epoch_of(self, version: int) -> int:
        """The number of epochs that have ended when `version` updates are applied."""
        return self.minibatch(version) // self.steps_per_epoch

    def ends_epoch(self, version: int) -> bool:
        """Whether the last update of `version` ended an epoch, or several."""
        return version > 0 and self.epoch_of(version) > self.epoch_of(version - 1)

    def start_of_epoch(self, version: int) -> int:
        """The version at which the epoch began that is under way at `version`."""
        return -(-self.epoch_of(version) * self.steps_per_epoch // self.local_steps)

    def end_of_epoch(self, version: int) -> int:
        """The version that ends the epoch that is under way at `version`."""
        return min(-(-(self.epoch_of(version) + 1) * self.steps_per_epoch // self.local_steps), self.total_steps)

    def schedule_factor(self, version: int) -> float:
        """The factor of the learning rate of the step after `version`."""
        steps_per_epoch = max(1, self.steps_per_epoch // self.local_steps)
        return schedules.factor(self.optimizer.schedule, version, steps_per_epoch, self.total_steps)
