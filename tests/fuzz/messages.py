"""Messages of any type, made from its descriptor: the shape is right, and what is in it is not."""

from functools import cache
from typing import Any, NamedTuple, cast

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

# Messages within messages: beyond it they are empty.
_MAX_DEPTH = 8
_MAX_FIELDS = 5
# How often an item of a repeated field is repeated now and then, and the bytes that it then may have.
_MANY = (1_000, 100_000)
_MAX_REPEATED_BYTES = 2 << 20

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "x", "a/b", "../..", "nets:loss", "\x1b[2J", "\u202e", "\0", "x" * 64, "{}", "1e9")
_LARGE_TEXTS = ("x" * 100_000, "[" * 10_000)
_BYTES = (b"", b"\0", bytes(12), bytes(range(256)))
_LARGE_BYTES = (bytes(1 << 16), bytes(1 << 20))
# One in so many is large.
_LARGE = 8


class Words(NamedTuple):
    """What is known where messages go: texts such as ids of jobs, and bytes such as tokens."""

    texts: tuple[str, ...] = ()
    bytes: tuple[bytes, ...] = ()


class Messages:
    """Strategies of messages with some words in them."""

    def __init__(self, words: Words) -> None:
        self._texts = st.sampled_from((*_LARGE_TEXTS, *(*words.texts, *_TEXTS) * _LARGE)) | st.text(max_size=12)
        self._bytes = st.sampled_from((*_LARGE_BYTES, *(*words.bytes, *_BYTES) * _LARGE)) | st.binary(max_size=24)
        self._known: dict[tuple[str, int], st.SearchStrategy[Message]] = {}

    def of(self, kind: type[Message], depth: int = 0) -> st.SearchStrategy[Message]:
        """Messages of a type, with some of its fields."""
        key = cast("Descriptor", kind.DESCRIPTOR).full_name, depth
        if key not in self._known:
            self._known[key] = self._made(kind, depth)
        return self._known[key]

    def _made(self, kind: type[Message], depth: int) -> st.SearchStrategy[Message]:
        fields = cast("Descriptor", kind.DESCRIPTOR).fields
        if not fields or depth > _MAX_DEPTH:
            return st.builds(kind)
        chosen = st.lists(st.sampled_from(range(len(fields))), max_size=_MAX_FIELDS, unique=True)

        @st.composite
        def message(draw: st.DrawFn) -> Message:
            made = kind()
            for index in draw(chosen):
                self._set(draw, made, fields[index], depth)
            return made

        return message()

    def _set(self, draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
        nested = field.message_type
        if nested is not None and nested.GetOptions().map_entry:
            key, value = (nested.fields_by_name[name] for name in ("key", "value"))
            held = getattr(message, field.name)
            if value.message_type is None:
                held[draw(self._value(key))] = draw(self._value(value))
            else:
                held[draw(self._value(key))].SetInParent()
            return
        if nested is not None:
            made = draw(self.of(message_factory.GetMessageClass(nested), depth + 1))
            if field.is_repeated:
                getattr(message, field.name).extend([made] * _times(draw, made.ByteSize()))
            else:
                getattr(message, field.name).CopyFrom(made)
            return
        value_drawn = draw(self._value(field))
        if field.is_repeated:
            size = len(value_drawn) if isinstance(value_drawn, (str, bytes)) else 8
            getattr(message, field.name).extend([value_drawn] * _times(draw, size))
        else:
            setattr(message, field.name, value_drawn)

    def _value(self, field: FieldDescriptor) -> st.SearchStrategy[Any]:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                return self._bytes if field.type == FieldDescriptor.TYPE_BYTES else self._texts
            case FieldDescriptor.CPPTYPE_BOOL:
                return _BOOLEANS
            case FieldDescriptor.CPPTYPE_ENUM:
                return _enums(cast("EnumDescriptor", field.enum_type))
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return _NUMBERS
            case kind:
                return _integers(kind)


def _times(draw: st.DrawFn, size: int) -> int:
    """How often an item of some bytes is repeated: once or twice, as a rule."""
    if draw(_RARELY):
        return max(1, min(draw(_REPEATED), _MAX_REPEATED_BYTES // max(1, size)))
    return draw(_ONCE_OR_TWICE)


_BOOLEANS = st.booleans()
_NUMBERS = st.sampled_from(_FLOATS) | st.floats(width=32)
_RARELY = st.sampled_from((False,) * 59 + (True,))
_REPEATED = st.sampled_from(_MANY)
_ONCE_OR_TWICE = st.sampled_from((1, 1, 1, 2))


@cache
def _integers(kind: int) -> st.SearchStrategy[int]:
    low, high = _INTEGERS[kind]
    marks = [value for value in (-1, 0, 1, 2, 3, 7, 100, 1 << 20, low, high, high // 2 + 1) if low <= value <= high]
    return st.sampled_from(marks) | st.integers(low, high)


@cache
def _enums(kind: EnumDescriptor) -> st.SearchStrategy[int]:
    return st.sampled_from([*(value.number for value in kind.values), -1, 77, (1 << 31) - 1])
