"""The catalogue of errors, held against the contract."""

import pickle
import string
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from thalweg.contract import errors
from thalweg.contract.errors import ThalwegError, Violation
from thalweg.v1 import errors_pb2

REASONS = [value.name.removeprefix("ERROR_REASON_") for value in errors_pb2.ErrorReason.DESCRIPTOR.values if value.number]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_a_code_and_a_message(reason: str) -> None:
    entry = errors.entry(reason)
    assert ThalwegError(reason).code is not grpc.StatusCode.OK
    names = [name for _, name, _, _ in string.Formatter().parse(entry.message) if name]
    error = ThalwegError(reason, {name: f"<{name}>" for name in names})
    assert all(f"<{name}>" in str(error) for name in names)
    assert "{" not in str(error)


@pytest.mark.parametrize("reason", REASONS)
def test_an_error_survives_its_journey(reason: str) -> None:
    error = ThalwegError(reason, {"job": "digits-1", "problem": "äöü"}, [Violation("a.b", "is wrong")])

    class Call(grpc.RpcError, grpc.Call):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> object:
            status = rpc_status.to_status(errors.to_status(error))
            known = {
                "code": lambda: status.code,
                "details": lambda: status.details,
                "trailing_metadata": lambda: status.trailing_metadata,
            }
            return known[name] if name in known else object.__getattribute__(self, name)

    make: Any = Call
    make.__abstractmethods__ = frozenset()
    arrived = errors.from_rpc_error(make(), "here")
    assert (arrived.reason, arrived.metadata, arrived.violations) == (error.reason, error.metadata, error.violations)


def test_an_error_pickles() -> None:
    error = ThalwegError("INVALID_ARGUMENT", violations=[Violation("x", "y")])
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.metadata, copy.violations, str(copy)) == (error.reason, error.metadata, error.violations, "x: y")


def test_unknown_reasons_are_refused() -> None:
    with pytest.raises(KeyError):
        errors.entry("NO_SUCH_REASON")
