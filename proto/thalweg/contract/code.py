"""Code of a job's author: where a job has entry points, and how large the archive of its code may be."""

from collections.abc import Iterator
from functools import cache
from re import compile as compile_pattern
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from thalweg.contract.rules import rules_of
from thalweg.v1 import job_pb2

# An archive of code is a zip file. So many bytes and files it may have, and so many bytes the files in all.
MAX_ARCHIVE_BYTES = 256 << 20
MAX_UNPACKED_BYTES = 1 << 30
MAX_FILES = 10_000
_MAX_NAME_BYTES = 1000
# The name of a file or of a folder, without separators of any system's and without control characters.
_PART = compile_pattern(r"[^/\\\x00-\x1f\x7f]+")
_MAX_PART_BYTES = 255

# Models by value: the module that workers import has a name that begins so, and code objects in its pickles have file names that
# do, before the name of the author's file.
BY_VALUE = "thalweg_by_value_"
BY_VALUE_FILE = "by value: "
_BY_VALUE_TITLES = {
    "model": "the module given as model=",
    "made": "the function given as model=",
    "loss": "the function given as loss=",
}

_ENTRY_POINT = job_pb2.EntryPoint.DESCRIPTOR


class Use(NamedTuple):
    """An entry point of a job: the path of its field, as `model.torch.entrypoint`, and its name, as `nets:resnet`."""

    field: str
    entrypoint: str

    @property
    def title(self) -> str:
        """What its author knows it by."""
        return title(self.entrypoint)


def title(entrypoint: str) -> str:
    """What an entry point's author knows it by: its name, or, of a model by value, how that was given."""
    return _BY_VALUE_TITLES.get(entrypoint.rpartition(":")[2], entrypoint) if entrypoint.startswith(BY_VALUE) else entrypoint


def entry_points(spec: job_pb2.JobSpec) -> list[Use]:
    """All entry points of a job, those that have arguments first. A job without any runs no code of its author's."""
    return sorted(_below(spec, ""), key=lambda use: not use.field.endswith(".entrypoint"))


def is_entry_point(text: str) -> bool:
    """Whether a value of a field that takes a name or an entry point is an entry point."""
    return ":" in text


def is_file_name(name: str) -> bool:
    """Whether a file of an archive may have a name: a relative path of plain names, separated by slashes, of moderate length."""
    if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        return False
    return all(
        _PART.fullmatch(part) and part not in (".", "..") and len(part.encode("utf-8", "replace")) <= _MAX_PART_BYTES
        for part in name.split("/")
    )


def _below(message: Message, path: str) -> Iterator[Use]:
    for field, value in message.ListFields():
        where = f"{path}.{field.name}".lstrip(".")
        if field.message_type and _leads_to_code(field.message_type):
            for index, item in enumerate(value) if field.is_repeated else [(None, value)]:
                yield from _below(item, where if index is None else f"{where}[{index}]")
        elif (message.DESCRIPTOR is _ENTRY_POINT and field.name == "entrypoint") or (
            rules_of(field).entrypoint and is_entry_point(value)
        ):
            yield Use(where, value)


@cache
def _leads_to_code(descriptor: Descriptor) -> bool:
    """Whether there can be an entry point in a message or below."""
    seen, left = set(), [descriptor]
    while left:
        message = left.pop()
        seen.add(message)
        if message is _ENTRY_POINT or any(rules_of(field).entrypoint for field in message.fields):
            return True
        left += [field.message_type for field in message.fields if field.message_type and field.message_type not in seen]
    return False
