"""The catalogue of errors, made from the annotations in `errors.proto`.

Server and client translate through it: a `ThalwegError` raised on one side is raised on the other. It is sent as a
google.rpc.Status with an ErrorInfo and, for invalid arguments, a BadRequest that names the fields.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from thalweg.contract.text import MAX_STATUS_VALUE, visible
from thalweg.v1 import errors_pb2, options_pb2

DOMAIN = "thalweg"
_PREFIX = "ERROR_REASON_"

_ENDED = "it ended the connection"
_RENEW = "make another with thalweg certs add"
# gRPC's words about a connection, and plain ones.
_PLAIN_WORDS = {
    "certificate has expired": f"its certificate, or that of its authority, has expired; {_RENEW}, where its authority is",
    "certificate is not yet valid": "its certificate is not valid yet; are the clocks of both machines right?",
    "certificate purpose": f"its certificate is one for clients only; {_RENEW} --server NAME",
    "hostname verification check": "its certificate names other hosts; use an address whose host it names, or "
    f"{_RENEW} --server NAME",
    "issuer certificate": "its certificate is not signed by an authority in the file of --tls-ca; is it the right file, and the "
    "right server?",
    "self-signed certificate": "its certificate is not signed by an authority in the file of --tls-ca; is it the right file, and "
    "the right server?",
    "certificate_verify_failed": "its certificate cannot be verified",
    "wrong_version_number": "it does not use TLS; start it with --tls-cert and --tls-key, or connect without --tls-ca "
    "(THALWEG_TLS_CA)",
    "failed parsing http/2": "a program that is not a Thalweg server answers there",
    "connection refused": "nothing listens there",
    "dns resolution failed": "no such host",
    "domain name not found": "no such host",
    "name or service not known": "no such host",
    "no route to host": "no route to host",
    "network is unreachable": "the network is unreachable",
    "timed out": "it does not answer",
    "timeout": "it does not answer",
    "deadline exceeded": "it does not answer",
    "connection reset": _ENDED,
    "socket closed": _ENDED,
    "broken pipe": _ENDED,
    "goaway": "it is going away",
    "ssl": "it does not use TLS as Thalweg does",
    "proxy": "a proxy refused the connection; does no_proxy name the server?",
}
# A server ends a connection that is not as it requires, and cannot say why.
_IF_ENCRYPTED = "if it requires certificates of its clients, give one that its authority signed, with --tls-cert and --tls-key"
_IF_CLEAR = "if it uses TLS, give the certificate of its authority with --tls-ca (THALWEG_TLS_CA)"


class Violation(NamedTuple):
    """One invalid field: its path, as in `model.layers[1].dense.units`, and what is wrong and what is allowed."""

    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


class ThalwegError(Exception):
    """An error that a user can act on. Pickles, so it crosses process boundaries.

    `reason` is a name of the enum ErrorReason without its prefix; `metadata` fills the braces of its message.
    """

    def __init__(self, reason: str, metadata: dict[str, str] | None = None, violations: Iterable[Violation] = ()) -> None:
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(Violation(*violation) for violation in violations)
        super().__init__(self.reason, self.metadata, self.violations)

    def __str__(self) -> str:
        if self.violations:
            return "\n".join(map(str, self.violations))
        return entry(self.reason).message.format_map(_Missing(self.metadata))

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code of the error."""
        return _CODES[entry(self.reason).code]


class _Missing(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def entry(reason: str) -> options_pb2.ErrorRules:
    """The catalogue's entry for a reason. Raises KeyError if there is none."""
    value = errors_pb2.ErrorReason.DESCRIPTOR.values_by_name[_PREFIX + reason]
    return value.GetOptions().Extensions[options_pb2.error]


def invalid(*violations: Violation) -> ThalwegError:
    """The error of one or more invalid fields."""
    return ThalwegError("INVALID_ARGUMENT", violations=violations)


def protocol_violation(problem: str) -> ThalwegError:
    """The error of a peer that breaks the protocol."""
    return ThalwegError("PROTOCOL_VIOLATION", {"problem": problem})


def to_status(error: ThalwegError) -> status_pb2.Status:
    """The error as gRPC's status."""
    metadata = {key: visible(value, MAX_STATUS_VALUE) for key, value in error.metadata.items()}
    error = ThalwegError(error.reason, metadata, map(_visible, error.violations))
    status = status_pb2.Status(code=entry(error.reason).code, message=str(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.violations:
        request = error_details_pb2.BadRequest()
        for violation in error.violations:
            request.field_violations.add(field=violation.field, description=violation.problem)
        status.details.add().Pack(request)
    return status


def _visible(violation: Violation) -> Violation:
    return Violation(visible(violation.field), visible(violation.problem))


def from_rpc_error(error: grpc.RpcError, address: str, *, encrypted: bool = False) -> ThalwegError:
    """The error that a call to the server at `address` raised, from gRPC's exception; `encrypted` if it was made over TLS."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ThalwegError("INTERNAL", {"problem": str(error)})
    call: Any = error
    try:
        status = rpc_status.from_call(call)
    except ValueError:
        # A call that is cancelled here as its status arrives has the details of that status, and the code of a cancelled call.
        status = None
    known = _from_details(status.details) if status else None
    if known:
        return known
    code, problem = call.code(), visible(call.details() or "no details")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ThalwegError("UNREACHABLE", {"address": address, "problem": _plain(problem, encrypted)})
    return ThalwegError("INTERNAL", {"problem": f"{code.name}: {problem}"})


def _plain(problem: str, encrypted: bool) -> str:
    """What gRPC says of a connection, in plain words."""
    low = problem.lower()
    plain = next((words for sign, words in _PLAIN_WORDS.items() if sign in low), problem)
    if plain == _ENDED and low.startswith("failed to connect"):
        return f"{plain}; {_IF_ENCRYPTED if encrypted else _IF_CLEAR}"
    return plain


def _from_details(details: Iterable[any_pb2.Any]) -> ThalwegError | None:
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    for detail in details:
        if not detail.Unpack(info):
            detail.Unpack(request)
    if info.domain != DOMAIN or _PREFIX + info.reason not in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name:
        return None
    violations = [_visible(Violation(v.field, v.description)) for v in request.field_violations]
    return ThalwegError(info.reason, {key: visible(value) for key, value in info.metadata.items()}, violations)
