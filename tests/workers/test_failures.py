"""Whose fault a failure is: the job's where no worker could do better, else the node's."""

import pytest

from thalweg.v1.parameter_service_pb2 import Failure
from thalweg.workers.data import DataError, MemoryLackError
from thalweg.workers.failures import NodeError, failure_of
from thalweg.workers.layers import ModelError


@pytest.mark.parametrize(
    ("error", "scope"),
    [
        (ModelError("model.layers: no"), Failure.SCOPE_JOB),
        (DataError("data.csv: no"), Failure.SCOPE_JOB),
        (MemoryLackError("data.csv: needs 9 GiB"), Failure.SCOPE_NODE),
        (NodeError("no SciPy"), Failure.SCOPE_NODE),
        (MemoryError("9 GiB"), Failure.SCOPE_NODE),
        (PermissionError("9"), Failure.SCOPE_NODE),
        (ImportError("scipy"), Failure.SCOPE_NODE),
        (ZeroDivisionError("9"), Failure.SCOPE_UNSPECIFIED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_has_a_scope(error: Exception, scope: Failure.Scope.ValueType) -> None:
    failure = failure_of(error)
    assert failure.scope == scope
    assert str(error) in failure.problem
