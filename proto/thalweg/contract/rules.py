"""Reads the contract's annotations: the allowed values of fields and alternatives of a job specification (`options.proto`)."""

import json
from typing import Any, Literal

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from thalweg.v1 import options_pb2

# The fields of a job's data for samples that are held out of training.
HELD_OUT: tuple[Literal["validation"], Literal["test"]] = ("validation", "test")


def rules_of(field: FieldDescriptor) -> options_pb2.FieldRules:
    """The rules of a field; empty ones if it has none."""
    return field.GetOptions().Extensions[options_pb2.rules]


def choice_of(oneof: OneofDescriptor) -> options_pb2.OneofRules:
    """The rules of an alternative; empty ones if it has none."""
    return oneof.GetOptions().Extensions[options_pb2.choice]


def default_of(field: FieldDescriptor) -> Any:
    """The value, in protobuf's JSON form, of an absent field; None if it has no default."""
    text = rules_of(field).default
    return json.loads(text) if text else None


def real_oneofs(message: Descriptor) -> list[OneofDescriptor]:
    """The alternatives in the `.proto` file, without those that protobuf makes for `optional` fields."""
    return [oneof for oneof in message.oneofs if len(oneof.fields) > 1 or not oneof.name.startswith("_")]


def value_of(field: FieldDescriptor) -> FieldDescriptor | None:
    """The field of a map's values; None if a field is no map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry and entry.GetOptions().map_entry else None


def files(message: type[Any] | Descriptor, oneof: str) -> list[str]:
    """The names of those alternatives of a `oneof` that are paths of files."""
    descriptor: Descriptor = message if isinstance(message, Descriptor) else message.DESCRIPTOR
    return [field.name for field in descriptor.oneofs_by_name[oneof].fields if rules_of(field).file]


def alternatives(message: type[Any] | Descriptor, oneof: str) -> list[str]:
    """The names of the alternatives of a `oneof`, in the order of the `.proto` file."""
    descriptor: Descriptor = message if isinstance(message, Descriptor) else message.DESCRIPTOR
    return [field.name for field in descriptor.oneofs_by_name[oneof].fields]
