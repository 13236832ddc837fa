"""Settings: single values that override a job's, from `--set training.epochs=5` or a Python mapping."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from thalweg.client.mapping import find, join, rivals, table_of, unknown
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.rules import rules_of, value_of

_PART = re.compile(r"([A-Za-z0-9_-]+)((?:\[\d{1,9}\])*)")


class Setting(NamedTuple):
    """One value and its path. `text` is the typed value, None for a Python value."""

    path: str
    value: Any
    text: str | None


def read_settings(settings: Mapping[str, Any] | Iterable[str]) -> list[Setting]:
    """Settings from a mapping of paths to values, or from texts `PATH=VALUE` whose values are TOML, otherwise strings.

    Raises ThalwegError for a text without a path or an equals sign.
    """
    if isinstance(settings, Mapping):
        return [Setting(path, value, None) for path, value in settings.items()]
    return [_read(text) for text in settings]


def _read(text: str) -> Setting:
    path, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not path:
        raise invalid(Violation("", f"{text!r} is not a setting; write KEY=VALUE, as in training.epochs=5"))
    try:
        document = tomllib.loads(f"value = {value}")
    except ValueError:
        # Text that is not TOML, or a number that is too long to read, is a string.
        document = {}
    return Setting(path, document["value"] if document.keys() == {"value"} else value, value)


def apply_setting(document: dict[str, Any], descriptor: Descriptor, setting: Setting) -> None:
    """Writes a setting to the values of a message, in place. An alternative replaces another one.

    Raises ThalwegError if the message has no such field.
    """
    parts = _parts(setting.path)
    path = ""
    values: FieldDescriptor | None = None
    for number, (name, indices) in enumerate(parts):
        field = values or find(descriptor, name)
        if field is None:
            raise invalid(unknown(descriptor, name, path))
        # In a map, names are the user's.
        key = name if values else field.name
        path = join(path, key)
        for rival in rivals(field):
            document.pop(rival, None)
        if number == len(parts) - 1:
            _assign(document, key, field, indices, setting, path)
            return
        rules = rules_of(field)
        if (rules.table or rules.entrypoint) and not indices:
            document[field.name] = _within_table(document.get(field.name, ""), parts[number + 1 :], setting)
            return
        values = None if values else value_of(field)
        if field.message_type is None:
            raise invalid(Violation(path, f"is a single value, and has no {parts[number + 1][0]}"))
        if indices:
            path += f"[{indices[0]}]"
            document = _item(document, field, indices, path)
        elif field.is_repeated and not values:
            raise invalid(Violation(path, f"is a list; write {path}[0] for its first item"))
        else:
            document = document.setdefault(key, {})
        descriptor = field.message_type


def _within_table(text: Any, parts: list[tuple[str, list[int]]], setting: Setting) -> dict[str, Any]:
    """A table with a value in it, or below in further tables, which are made if they are not there."""
    table = table_of(text) if isinstance(text, str) else text
    result = below = table if isinstance(table, dict) else {}
    *above, (last, indices) = parts
    if indices or any(indices for _, indices in above):
        raise invalid(Violation(setting.path, "items of lists in a table cannot be set alone; set the whole list"))
    for name, _ in above:
        if not isinstance(below.get(name), dict):
            below[name] = {}
        below = below[name]
    below[last] = setting.value
    return result


def _parts(path: str) -> list[tuple[str, list[int]]]:
    """The names along a path, each with the indices after it."""
    parts = []
    for text in path.split("."):
        match = _PART.fullmatch(text)
        if match is None:
            raise invalid(Violation(path, "is not a path; write one as model.layers[0].dense.units"))
        parts.append((match[1], [int(index) for index in re.findall(r"\d+", match[2])]))
    return parts


def _item(document: dict[str, Any], field: FieldDescriptor, indices: list[int], path: str) -> Any:
    """The item of a list that a path leads through."""
    _check_index(document, field, indices, path)
    return document[field.name][indices[0]]


def _assign(document: dict[str, Any], key: str, field: FieldDescriptor, indices: list[int], setting: Setting, path: str) -> None:
    rules = rules_of(field)
    table = (rules.table or rules.entrypoint) and isinstance(setting.value, Mapping)
    whole = field.is_repeated and not indices and isinstance(setting.value, list)
    text = field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not isinstance(setting.value, str) and not table and not whole
    # The value of a string field is a string, even if it looks like a number.
    value = setting.text if text and setting.text is not None else setting.value
    if not indices:
        document[key] = value
        return
    _check_index(document, field, indices, f"{path}[{indices[0]}]")
    document[field.name][indices[0]] = value


def _check_index(document: dict[str, Any], field: FieldDescriptor, indices: list[int], path: str) -> None:
    """Raises ThalwegError if a list has no item at an index."""
    items = document.get(field.name, [])
    if not field.is_repeated or len(indices) != 1:
        raise invalid(Violation(path, "is not a list"))
    if indices[0] >= len(items):
        there = f"there are {len(items)}, counted from 0" if items else "the list is empty"
        raise invalid(Violation(path, f"no such item; {there}"))
