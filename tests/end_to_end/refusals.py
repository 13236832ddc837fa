"""Errors as a client in any language sees them: the status of a call and its details."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2


class Refusal(NamedTuple):
    """What a call failed with. `reason` and `fields` are empty where the server's catalogue has no part in it."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    message: str


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Reads the error of a call from what came over the wire."""
    call: Any = error
    reason, metadata, fields = "", {}, []
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.code == call.code().value[0]
            assert status.message == call.details()
            for detail in status.details:
                info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
                if detail.Unpack(info):
                    assert info.domain == "thalweg"
                    reason, metadata = info.reason, dict(info.metadata)
                elif detail.Unpack(request):
                    fields = [violation.field for violation in request.field_violations]
    return Refusal(call.code(), reason, metadata, fields, call.details())


def refusal(call: Callable[[], object]) -> Refusal:
    """The error that a call, or reading its stream, ends with."""
    try:
        answer = call()
        if isinstance(answer, Iterator):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError("the call was not refused")
