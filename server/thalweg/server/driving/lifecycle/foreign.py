"""Jobs on record that another release wrote: whether this release knows all that they ask for."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from thalweg.contract.errors import ThalwegError
from thalweg.server import validation
from thalweg.v1 import job_pb2


class ForeignSpecError(Exception):
    """This release cannot run a job; the message says what it does not know."""


def known(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """A specification on record with the defaults of fields that are newer than it. Raises ForeignSpecError."""
    unknown = sorted(_unknown(spec, ""))
    if unknown:
        raise ForeignSpecError(f"this release does not know {', '.join(unknown)}")
    given = job_pb2.JobSpec()
    given.CopyFrom(spec)
    # The server put it there when it accepted the job, and a client must not.
    exported = spec.model.initial.sha256 if spec.model.initial.job else ""
    if exported:
        given.model.initial.ClearField("sha256")
    try:
        completed = validation.complete(given)
    except ThalwegError as error:
        raise ForeignSpecError(f"this release allows other values: {error}") from error
    if exported:
        completed.model.initial.sha256 = exported
    return completed


def _unknown(message: Message, path: str) -> Iterator[str]:
    """The fields that this release's contract does not have, by number and place."""
    # The stubs lack the constructor's argument.
    unknown: Any = UnknownFieldSet
    for field in unknown(message):
        yield f"field {field.field_number} of {path or 'the job'}"
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if isinstance(value, Message):
            yield from _unknown(value, f"{path}.{descriptor.name}".lstrip("."))
        else:
            for index, each in enumerate(value):
                if isinstance(each, Message):
                    yield from _unknown(each, f"{path}.{descriptor.name}[{index}]".lstrip("."))
