"""The memory that a worker needs for a job, besides the data: computed before any of it is taken."""

from thalweg.contract import codecs, tree
from thalweg.learning import optimizers
from thalweg.learning.objective import Objective
from thalweg.v1 import job_pb2

# The samples of a minibatch are divided almost evenly: layers have buffers for two sizes of microbatches.
_SIZES = 2


def slabs(spec: job_pb2.JobSpec, *, shared: bool) -> int:
    """How many slabs, arrays with one number for each parameter, a worker takes at most for a complete specification.

    `shared` says whether it reads the parameters where the server has them.
    """
    training = spec.training
    parameters = 0 if shared else 2
    if training.gradient != "backpropagation":
        return parameters + 2
    share = range(-(-training.microbatches // training.workers))
    exact = codecs.exact(spec)
    nodes = tree.cover(share, training.microbatches) if exact else [tree.Node(0, index) for index in share]
    # In shared memory each task's gradient stays until the server has read it. Below a task's node, sums wait for others.
    gradients = (len(nodes) if shared else 1) + max(node.level for node in nodes)
    lane = 2 + len(optimizers.make(spec.optimizer).slots) if training.synchrony.HasField("local") else 0
    left = len(share) if codecs.of_gradients(spec, 1).feedback else 0
    # The worker that makes the first parameters has them twice, once as messages, before it computes gradients.
    return parameters + max(2, gradients + lane + left)


def of_worker(spec: job_pb2.JobSpec, objective: Objective, train_samples: int, evaluated: int, *, shared: bool) -> int:
    """The bytes that a worker takes for a job on so many training samples, of which it evaluates some at once."""
    minibatch = min(spec.training.batch_size, train_samples)
    samples = _SIZES * -(-minibatch // spec.training.microbatches) + evaluated
    return (slabs(spec, shared=shared) * objective.size + samples * objective.activations) * objective.dtype.itemsize
