"""The kinds of models: each is one module, and one line here."""

from collections.abc import Callable

from thalweg.learning.batch import Schema
from thalweg.learning.errors import NodeError
from thalweg.learning.objective import Objective
from thalweg.learning.sequential.model import Sequential
from thalweg.v1 import job_pb2

# Makes the objective of a job for samples of a schema, in a dtype if one is given; with substitutes or without, as below.
Maker = Callable[[job_pb2.JobSpec, Schema, str | None, bool], Objective]


def _sequential(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None, substitutes: bool) -> Objective:
    return Sequential(spec, schema, dtype, substitutes=substitutes)


def _torch(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None, _: bool) -> Objective:
    try:
        import torch  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NodeError("model.torch: PyTorch is not installed on this machine; pip install 'thalweg[torch]'") from error
    from thalweg.learning.pytorch.objective import TorchObjective  # noqa: PLC0415 - imports torch

    return TorchObjective(spec, schema, dtype)


KINDS: dict[str, Maker] = {
    "sequential": _sequential,
    "torch": _torch,
}


def objective(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None = None, *, substitutes: bool = False) -> Objective:
    """The objective of a job whose specification is complete, for samples of a schema.

    It computes in the job's dtype, unless another one is given. With `substitutes` it can replace a package that this machine
    lacks, if possible: it is slower, and the last bits may differ. Workers allow none, since equal bits need the same package
    everywhere. Raises MistakeError if the model does not fit, NodeError if this machine lacks what it needs.
    """
    return KINDS[spec.model.WhichOneof("kind") or "sequential"](spec, schema, dtype, substitutes)
