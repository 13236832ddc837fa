"""The kinds of models: each is one module, and one line here."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from thalweg.learning.batch import Schema
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.learning.objective import Objective
from thalweg.learning.python_object import PythonObjective
from thalweg.learning.sequential.model import Sequential
from thalweg.v1 import job_pb2

# Makes the objective of a job for samples of a schema, in a dtype if one is given; with substitutes or without, as below.
Maker = Callable[[job_pb2.JobSpec, Schema, str | None, bool], Objective]
# Lets a library compute with a number of threads, and in ways that have equal bits only, as long as a context.
Settings = Callable[[int], AbstractContextManager[None]]


class ModelKind(NamedTuple):
    """How objectives of a kind are made, and the settings of the process that they need in workers."""

    make: Maker
    settings: Settings


def _sequential(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None, substitutes: bool) -> Objective:
    return Sequential(spec, schema, dtype, substitutes=substitutes)


@contextmanager
def _no_settings(_: int) -> Iterator[None]:
    yield


def _torch(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None, substitutes: bool) -> Objective:
    _require_torch()
    from thalweg.learning.pytorch import devices  # noqa: PLC0415 - imports torch
    from thalweg.learning.pytorch.objective import TorchObjective  # noqa: PLC0415

    link = devices.link_to(spec.training.resources, substitutes=substitutes)
    # Without a compiler the module is run as it is.
    return TorchObjective(spec, schema, dtype, link, compiled=spec.model.compile and not substitutes)


def _torch_settings(threads: int) -> AbstractContextManager[None]:
    _require_torch()
    from thalweg.learning.pytorch.settings import settled  # noqa: PLC0415 - imports torch

    return settled(threads)


def _require_torch() -> None:
    try:
        import torch  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NodeError("model.torch: PyTorch is not installed on this machine; pip install 'thalweg[torch]'") from error


def _jax(spec: job_pb2.JobSpec, _schema: Schema, dtype: str | None, _: bool) -> Objective:
    _require_jax()
    from thalweg.learning.jax_function import JaxObjective  # noqa: PLC0415 - imports jax

    _refuse_metrics(spec, "jax")
    return JaxObjective(spec, dtype)


def _jax_settings(threads: int) -> AbstractContextManager[None]:
    _require_jax()
    from thalweg.learning.jax_function import settled  # noqa: PLC0415 - imports jax

    return settled(threads)


def _require_jax() -> None:
    try:
        import jax  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "jaxlib"):
            raise
        raise NodeError("model.jax: JAX is not installed on this machine; pip install 'thalweg[jax]'") from error


def _python(spec: job_pb2.JobSpec, _schema: Schema, dtype: str | None, _: bool) -> Objective:
    _refuse_metrics(spec, "python")
    return PythonObjective(spec, dtype)


def _refuse_metrics(spec: job_pb2.JobSpec, kind: str) -> None:
    """Raises MistakeError if a job asks for metrics: such models have a loss of their own, and what they predict is unknown."""
    if spec.model.metrics:
        raise MistakeError(f"model.metrics: {spec.model.metrics[0]} is not possible with model.{kind}, which has its loss alone")


KINDS: dict[str, ModelKind] = {
    "sequential": ModelKind(_sequential, _no_settings),
    "torch": ModelKind(_torch, _torch_settings),
    "jax": ModelKind(_jax, _jax_settings),
    "python": ModelKind(_python, _no_settings),
}


def kind_of(spec: job_pb2.JobSpec) -> ModelKind:
    """The kind of a job's model."""
    return KINDS[spec.model.WhichOneof("kind") or "sequential"]


def objective(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None = None, *, substitutes: bool = False) -> Objective:
    """The objective of a job whose specification is complete, for samples of a schema.

    It computes in the job's dtype, unless another one is given. With `substitutes` it can replace a package, a GPU or a compiler
    that this machine lacks, if possible: it is slower, and the last bits may differ. Workers allow none, since equal bits need
    the same everywhere. Raises MistakeError if the model does not fit, NodeError if this machine lacks what it needs.
    """
    return kind_of(spec).make(spec, schema, dtype, substitutes)
