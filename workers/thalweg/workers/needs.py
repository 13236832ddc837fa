"""The memory that a worker needs for a job, besides the data: computed before any of it is allocated."""

from thalweg.contract import codecs, tree
from thalweg.learning import optimizers
from thalweg.learning.objective import Objective
from thalweg.v1 import job_pb2

# The sizes of microbatches: a minibatch is divided almost evenly, so that layers have buffers for two sizes.
_SIZES = 2


def slabs(spec: job_pb2.JobSpec, *, shared: bool, numerical: bool = False) -> int:
    """The most slabs, arrays with one number for each parameter, that a worker needs for a complete specification.

    `shared` says whether it reads the parameters in the server's memory, `numerical` whether it takes differences of the loss
    although the specification does not say so.
    """
    training = spec.training
    parameters = 0 if shared else 2
    if numerical or training.gradient != "backpropagation":
        return parameters + 2
    share = range(-(-training.microbatches // training.workers))
    exact = codecs.exact(spec)
    nodes = tree.cover(share, training.microbatches) if exact else [tree.Node(0, index) for index in share]
    # In shared memory each task's gradient stays until the server has read it. Within a task's node, partial sums are kept.
    gradients = (len(nodes) if shared else 1) + max(node.level for node in nodes)
    lane = 2 + len(optimizers.make(spec.optimizer).slots) if training.synchrony.HasField("local") else 0
    left = len(share) if codecs.of_gradients(spec, 1).feedback else 0
    # The worker that makes the initial parameters has them twice, once as messages, before it computes gradients.
    return parameters + max(2, gradients + lane + left)


def of_worker(spec: job_pb2.JobSpec, objective: Objective, train_samples: int, evaluated: int, *, shared: bool) -> int:
    """The bytes that a worker needs for a job on `train_samples`, if it evaluates `evaluated` samples at once."""
    minibatch = min(spec.training.batch_size, train_samples)
    samples = _SIZES * -(-minibatch // spec.training.microbatches) + evaluated
    # A GPU reads and writes one more slab, which is page-locked.
    staging = 1 if spec.training.resources.gpus else 0
    held = slabs(spec, shared=shared, numerical=objective.numerical) + staging
    numbers = held * objective.size + samples * objective.activations
    return numbers * objective.dtype.itemsize
