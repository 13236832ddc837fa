"""Checks plain values, as in TOML and Python dictionaries, against the contract's descriptors.

protobuf's own JSON mapping makes the message. All errors in the values are found here first, each with its path, so that a user
reads `model.layers[1].dnse: unknown; did you mean dense?` and not a parser's error.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from thalweg.contract.code import is_entry_point
from thalweg.contract.errors import Violation
from thalweg.contract.rules import real_oneofs, rules_of, value_of
from thalweg.contract.text import closest
from thalweg.v1 import job_pb2

_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
# An entry point, which may be written as its name alone; and the field that the name is in.
_ENTRY_POINT = job_pb2.EntryPoint.DESCRIPTOR
_NAME = _ENTRY_POINT.fields_by_name["entrypoint"].name
# Of tables and lists in a table. The server allows less.
_MAX_TABLE_DEPTH = 100


def find(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    """The field of a message by its name in the `.proto` file or in protobuf's JSON mapping."""
    return descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)


def values_of(message: Message) -> dict[str, Any]:
    """The fields of a message, as plain values, in the form in which job files have them."""

    def plain(field: FieldDescriptor, value: Any) -> Any:
        if isinstance(value, Message):
            return values_of(value)
        rules = rules_of(field)
        if rules.table:
            return table_of(value)
        return {_NAME: value} if rules.entrypoint and is_entry_point(value) else value

    def whole(field: FieldDescriptor, value: Any) -> Any:
        if inside := value_of(field):
            return {key: plain(inside, value[key]) for key in sorted(value)}
        return [plain(field, item) for item in value] if field.is_repeated else plain(field, value)

    return {field.name: whole(field, value) for field, value in message.ListFields()}


def table_of(text: str) -> Any:
    """The table that is stored as a text; the text itself, if it is none."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return table if isinstance(table, dict) else text


def rivals(field: FieldDescriptor) -> list[str]:
    """The names of the fields that cannot be given together with `field`."""
    oneof = field.containing_oneof
    return [other.name for other in oneof.fields if other is not field] if oneof else []


def unknown(descriptor: Descriptor, name: str, path: str) -> Violation:
    """The error of a name that a message does not have, with a suggestion, if there is one."""
    names = [field.name for field in descriptor.fields]
    close = closest(name, names)
    elsewhere = [f"{path}.{found}".lstrip(".") for found in _deeper(descriptor) if found.rpartition(".")[2] == name]
    meant = close or next(iter(elsewhere), "")
    hint = f"; did you mean {meant}?" if meant else ""
    choice = f" (one of {', '.join(names)})" if names else " (it has no settings)"
    return Violation(join(path, name), f"unknown{hint}{choice}")


def _deeper(descriptor: Descriptor) -> Iterator[str]:
    """The paths of all fields of single messages below a message, alternatives left out."""
    chosen = {field.name for oneof in real_oneofs(descriptor) for field in oneof.fields}
    for field in descriptor.fields:
        if field.message_type and not field.is_repeated and field.name not in chosen and field.message_type is not descriptor:
            yield from (f"{field.name}.{below.name}" for below in field.message_type.fields)
            yield from (f"{field.name}.{below}" for below in _deeper(field.message_type))


def join(path: str, name: str) -> str:
    """The path of a field, from that of its message."""
    return f"{path}.{name}" if path else name


def shown(value: Any) -> str:
    """A value, for a message about it."""
    match value:
        case bool():
            return str(value).lower()
        case Mapping():
            return "a table"
        case list() | tuple():
            return "a list"
        case str():
            return repr(value if len(value) <= 40 else value[:37] + "...")
        case _:
            return str(value)


class SpecReader:
    """One comparison of values with a descriptor; collects the errors in `violations`."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def _fault(self, path: str, problem: str) -> None:
        self.violations.append(Violation(path, problem))

    def message(self, descriptor: Descriptor, value: Any, path: str = "") -> dict[str, Any]:
        """The values of a message under the field names of the `.proto` file. Invalid ones are left out."""
        if descriptor is _ENTRY_POINT and isinstance(value, str):
            value = {_NAME: value}
        if not isinstance(value, Mapping):
            self._fault(path, f"{shown(value)} is not a table{_as_table(descriptor, value)}")
            return {}
        result: dict[str, Any] = {}
        for name, given in value.items():
            field = find(descriptor, name) if isinstance(name, str) else None
            if field is None:
                self.violations.append(unknown(descriptor, str(name), path))
                continue
            taken = [rival for rival in rivals(field) if rival in result]
            if taken:
                self._fault(path or field.name, f"{taken[0]} and {field.name} are alternatives; give one of them")
            result[field.name] = self._field(field, given, join(path, field.name))
        return result

    def _field(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        if not field.is_repeated:
            return self._single(field, value, path)
        if inside := value_of(field):
            return self._map(inside, value, path)
        if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Mapping):
            self._fault(path, f"{shown(value)} is not a list")
            return []
        return [self._single(field, item, f"{path}[{index}]") for index, item in enumerate(value)]

    def _map(self, inside: FieldDescriptor, value: Any, path: str) -> dict[str, Any]:
        """A table whose names are the user's, each with a value."""
        if not isinstance(value, Mapping):
            self._fault(path, f"{shown(value)} is not a table")
            return {}
        for name in (name for name in value if not is_text(name)):
            self._fault(path, f"{shown(name)} is not a name; names are strings")
        return {name: self._single(inside, item, join(path, name)) for name, item in value.items() if is_text(name)}

    def _single(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        if field.message_type:
            return self.message(field.message_type, value, path)
        rules = rules_of(field)
        if rules.table:
            return self._table(value, path)
        if rules.entrypoint and isinstance(value, Mapping):
            return self._entry_point(value, path)
        number = isinstance(value, Real) and not isinstance(value, bool)
        finite = number and math.isfinite(value)
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                value = os.fspath(value) if isinstance(value, os.PathLike) else value
                right = is_text(value)
                wanted = "a string in UTF-8; texts and names of files must be" if isinstance(value, str) else "a string"
            case FieldDescriptor.CPPTYPE_BOOL:
                right, wanted = isinstance(value, bool), "true or false"
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                right, wanted = finite, "a finite number" if number else "a number"
                value = float(value) if finite else value
            case _:
                right, wanted = finite and value == int(value), "a whole number"
                value = self._within(field, int(value), path) if right else value
        if not right:
            self._fault(path, f"{shown(value)} is not {wanted}")
        return value

    def _entry_point(self, value: Mapping[Any, Any], path: str) -> str:
        """The name of an entry point that is given as a table, in a field that may hold other names too."""
        for name in value.keys() - {_NAME}:
            self._fault(join(path, str(name)), f"unknown (one of {_NAME})")
        given = value.get(_NAME)
        if _NAME not in value:
            self._fault(join(path, _NAME), "must be given")
        elif not (isinstance(given, str) and is_text(given) and is_entry_point(given)):
            pattern = rules_of(_ENTRY_POINT.fields_by_name[_NAME]).pattern_words
            self._fault(join(path, _NAME), f"invalid value {shown(given)}; use {pattern}")
        return str(given)

    def _table(self, value: Any, path: str) -> str:
        """A table as the text that it is stored as: JSON with sorted keys, so that equal tables are equal texts."""
        if isinstance(value, str):
            value = table_of(value)
        if not isinstance(value, Mapping):
            self._fault(path, f"{shown(value)} is not a table")
            return "{}"
        before = len(self.violations)
        plain = self._plain(value, path, 0)
        # What is faulty has no such text.
        return json.dumps(plain, sort_keys=True, separators=(",", ":")) if len(self.violations) == before else "{}"

    def _plain(self, value: Any, path: str, depth: int) -> Any:
        """A value of a table as JSON has it: whole numbers stay whole, and tuples become lists."""
        match value:
            case _ if depth > _MAX_TABLE_DEPTH:
                self._fault(path, "is nested too deeply")
            case bool():
                return value
            case Integral():
                return int(value)
            case Real() if math.isfinite(value):
                return float(value)
            case Real():
                self._fault(path, f"{shown(value)} is not a finite number")
            case str():
                if not is_text(value):
                    self._fault(path, f"{shown(value)} is not a string in UTF-8")
                return value
            case Mapping():
                for name in (name for name in value if not is_text(name)):
                    self._fault(path, f"{shown(name)} is not a name; names of arguments are strings")
                return {str(name): self._plain(item, join(path, str(name)), depth + 1) for name, item in value.items()}
            case list() | tuple():
                return [self._plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
            case None:
                self._fault(path, "null is not allowed; leave the argument out")
            case _:
                what = f"a value of the type {type(value).__name__}"
                self._fault(path, f"{what} is not allowed; use a string, a number, true or false, a list or a table")
        return None

    def _within(self, field: FieldDescriptor, value: int, path: str) -> int:
        """Checks whether the type can hold a value. The server checks other bounds."""
        least, most = _BOUNDS[field.cpp_type]
        rules = rules_of(field)
        if value < least:
            wanted = int(rules.at_least) if rules.HasField("at_least") else least
            self._fault(path, f"{value} is not allowed; it must be at least {wanted}")
        elif value > most:
            wanted = int(rules.at_most) if rules.HasField("at_most") else most
            self._fault(path, f"{value} is not allowed; it must be at most {wanted}")
        return value


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be written as UTF-8, which bytes of a command line need not be."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_table(descriptor: Descriptor, value: Any) -> str:
    """A hint how a name that was given in place of a table is written as a table."""
    chosen = [field.name for oneof in real_oneofs(descriptor) for field in oneof.fields]
    if not isinstance(value, str) or not chosen:
        return ""
    close = closest(value, chosen)
    return f"; write {{ {close} = {{}} }}" if close else f" (one of {', '.join(chosen)})"
