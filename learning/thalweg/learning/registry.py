"""The kinds of models: each is one module, and one line here."""

from thalweg.learning.batch import Schema
from thalweg.learning.objective import Objective
from thalweg.learning.sequential.model import Sequential
from thalweg.v1 import job_pb2


def objective(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None = None, *, substitutes: bool = False) -> Objective:
    """The objective of a job whose specification is complete, for samples of a schema.

    It computes in the job's dtype, unless another one is given. With `substitutes` it can replace a package that this machine
    lacks, if possible: it is slower, and the last bits may differ. Workers allow none, since equal bits need the same package
    everywhere. Raises MistakeError if the model does not fit, NodeError if this machine lacks what it needs.
    """
    return Sequential(spec, schema, dtype, substitutes=substitutes)
