"""A small model of each kind, of 4 inputs, for 3 classes, unless others are said; and samples for it."""

import json
import os
import shutil
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import batch
from thalweg.learning import registry
from thalweg.learning.batch import Batch
from thalweg.server import validation
from thalweg.v1 import job_pb2

_HERE = "tests.learning.kinds"

MODELS: dict[str, dict[str, Any]] = {
    "sequential": {"loss": "softmax_cross_entropy"},
    "torch": {"torch": {"entrypoint": f"{_HERE}.torch_model:make"}, "loss": "softmax_cross_entropy"},
    "torch, compiled": {
        "torch": {"entrypoint": f"{_HERE}.torch_model:make"},
        "loss": "softmax_cross_entropy",
        "compile": True,
    },
    "jax": {"jax": {"entrypoint": f"{_HERE}.jax_model:make"}},
    "jax, mean": {"jax": {"entrypoint": f"{_HERE}.jax_model:mean"}},
    "python": {"python": {"entrypoint": f"{_HERE}.python_model:Differentiated"}},
    "python, mean": {"python": {"entrypoint": f"{_HERE}.python_model:Mean"}},
    "python, numerical": {"python": {"entrypoint": f"{_HERE}.python_model:Numerical"}},
}
_PACKAGES = {"torch": "torch", "torch, compiled": "torch", "jax": "jax", "jax, mean": "jax"}


def require(kind: str) -> None:
    """Skips the test where the package that a kind needs is not installed."""
    if kind in _PACKAGES:
        pytest.importorskip(_PACKAGES[kind], reason=f"the kind {kind} needs the extra {_PACKAGES[kind]}")
    if "compiled" in kind and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("torch.compile needs a C++ compiler")


def spec_of(kind: str, inputs: int = 4, classes: int = 3, **fields: Any) -> job_pb2.JobSpec:
    """A complete specification of a job with the model of a kind, and fields for others than the model."""
    base = {"data": {"builtin": "digits"}, "optimizer": {"sgd": {}}, "seed": 7}
    spec = json_format.ParseDict({**base, **fields, "model": MODELS[kind]}, job_pb2.JobSpec())
    if name := spec.model.WhichOneof("kind"):
        getattr(spec.model, name).arguments = json.dumps({"inputs": inputs, "classes": classes})
    else:
        layers = [{"dense": {"units": 5}}, {"tanh": {}}, {"dropout": {"p": 0.3}}, {"dense": {"units": classes}}]
        json_format.ParseDict({"layers": layers}, spec.model)
    return validation.complete(spec)


def settled(spec: job_pb2.JobSpec) -> ExitStack:
    """The settings of the process that workers have for a job."""
    stack = ExitStack()
    stack.enter_context(registry.kind_of(spec).settings(spec.training.threads_per_worker))
    return stack


def samples(number: int, dtype: str = "float32") -> Batch:
    rng = np.random.default_rng(number)
    return batch(rng.normal(size=(number, 4)).astype(dtype), rng.integers(0, 3, number))
