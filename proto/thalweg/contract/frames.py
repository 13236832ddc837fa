"""The messages of a worker's stream, with the large part of each, its `data`, kept separately.

A generated class copies `data` when it is set, when it is serialized, when it is parsed and when it is read. Here it is copied
once, into the bytes that are sent, and received as a view of the received bytes. The bytes are the same protobuf message: any
implementation reads what this module writes, and this module reads what any implementation writes.

`data` is written first, after two tags of one byte and two lengths. From 16 KiB to 2 MiB lengths take three bytes, so it begins
at the eighth byte, where numbers of up to 64 bits are aligned. A generated class would write it in the order of the fields'
numbers, which no reader may rely on.

https://protobuf.dev/programming-guides/encoding
"""

from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from thalweg.v1 import parameter_service_pb2 as pb

M = TypeVar("M", pb.WorkRequest, pb.WorkResponse)

# Both ends name the method themselves, since generated stubs copy.
SERVICE = pb.DESCRIPTOR.services_by_name["ParameterService"].full_name
METHOD = f"/{SERVICE}/Work"
NOTHING = memoryview(b"")

# Below this, a copy takes less time than avoiding it.
_SMALL_BYTES = 1 << 14
_DELIMITED = 2
# The most bytes of a number of 64 bits, and of one of 32 bits, such as tags and lengths.
_MAX_BYTES, _MOST_BYTES_OF_32 = 10, 5
# More fields than any of the messages has. Reading a million of them would take long.
_MAX_FIELDS = 32


class Parcel(NamedTuple, Generic[M]):
    """A message whose `data` is empty, and the data that belongs there.

    To send, the data is any contiguous object with the buffer protocol, such as an array; received, it is a memoryview of bytes,
    which it keeps alive.
    """

    message: M
    data: Any = NOTHING


class _Place(NamedTuple):
    """The place of `data`: the nested fields that hold it, and the tags of these fields and its own."""

    fields: tuple[str, ...]
    tags: tuple[int, ...]


class _OddError(Exception):
    """Bytes in a form that this module does not read. Whether they are valid, protobuf's own parser decides."""


def serialize(parcel: Parcel[M] | pb.WorkRequest | pb.WorkResponse | bytes) -> bytes:
    """The bytes of a message. Bytes are returned unchanged: a message for many workers is serialized once."""
    if isinstance(parcel, bytes):
        return parcel
    if not isinstance(parcel, Parcel):
        return parcel.SerializeToString()
    message, data = parcel
    size = memoryview(data).nbytes
    if not size:
        return message.SerializeToString()
    place = _PLACES[type(message)][message.WhichOneof("message")]
    if len(place.fields) > 1:
        raise ValueError("a task takes its parameters along serialized")
    outer, inner = place.tags
    rest = getattr(message, place.fields[0]).SerializeToString()
    head = _varint(inner) + _varint(size)
    return b"".join((_varint(outer), _varint(len(head) + size + len(rest)), head, data, rest))


def with_parameters(task: pb.WorkResponse, parameters: bytes) -> bytes:
    """The bytes of a task that carries a chunk of parameters, made from the bytes of the message with the chunk."""
    outer, inner, _ = _PLACES[pb.WorkResponse]["differentiate"].tags
    _, length = _number(parameters, 0)
    rest = task.differentiate.SerializeToString()
    # The length and the chunk, which follow the tag, are copied unchanged.
    size = 1 + len(parameters) - length + len(rest)
    return b"".join((_varint(outer), _varint(size), _varint(inner), memoryview(parameters)[length:], rest))


def request_of(raw: bytes) -> Parcel[pb.WorkRequest]:
    """The request from its bytes. Raises google.protobuf.message.DecodeError if they are not a request."""
    return _parse(pb.WorkRequest, raw)


def response_of(raw: bytes) -> Parcel[pb.WorkResponse]:
    """The response from its bytes. Raises google.protobuf.message.DecodeError if they are not a response."""
    return _parse(pb.WorkResponse, raw)


def unpacked(message: M) -> Parcel[M]:
    """A message without its `data`, and the data."""
    place = _PLACES[type(message)].get(message.WhichOneof("message"))
    if place is None:
        return Parcel(message)
    inner: Any = message
    for field in place.fields:
        if not inner.HasField(field):
            return Parcel(message)
        inner = getattr(inner, field)
    data = memoryview(inner.data)
    inner.ClearField("data")
    return Parcel(message, data)


def _parse(kind: type[M], raw: bytes) -> Parcel[M]:
    if len(raw) < _SMALL_BYTES:
        return unpacked(kind.FromString(raw))
    try:
        place, body = _only_field(_BY_TAG[kind], raw)
        found = [_Found(slice(0), body)]
        for tag in place.tags[1:]:
            found.append(_find(raw, found[-1].value, tag))
    except (_OddError, IndexError):
        return unpacked(kind.FromString(raw))
    message = kind()
    inner: Any = message
    for field, (_, outside), (inside, _) in zip(place.fields, found, found[1:], strict=False):
        inner = getattr(inner, field)
        inner.SetInParent()
        inner.MergeFromString(raw[outside.start : inside.start] + raw[inside.stop : outside.stop])
    return Parcel(message, memoryview(raw)[found[-1].value])


class _Found(NamedTuple):
    """The place of a field, and of its value."""

    field: slice
    value: slice


def _only_field(places: dict[int, _Place], raw: bytes) -> tuple[_Place, slice]:
    """The place of the only field of the bytes, and of its body. Raises _OddError if there is another field."""
    tag, at = _number(raw, 0)
    length, body = _number(raw, at)
    if tag not in places or body + length != len(raw):
        raise _OddError
    return places[tag], slice(body, len(raw))


def _find(raw: bytes, body: slice, wanted: int) -> _Found:
    """The one field with a tag in the body of a message. Raises _OddError if there is none, or two."""
    found: _Found | None = None
    at, end = body.start, body.stop
    for _ in range(_MAX_FIELDS):
        if at >= end:
            break
        begin = at
        tag, at = _number(raw, at)
        match tag & 7:
            case 0:
                at = _end_of_number(raw, at, _MAX_BYTES)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, value = _number(raw, at)
                at = value + length
                if tag == wanted:
                    if found:
                        raise _OddError
                    found = _Found(slice(begin, at), slice(value, at))
            case _:
                raise _OddError
    if found is None or at != end:
        raise _OddError
    return found


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """The tag or the length at a place, and the place after it. Raises _OddError if it is too long, IndexError if cut short."""
    byte = raw[at]
    if byte < 128:
        return byte, at + 1
    end = _end_of_number(raw, at, _MOST_BYTES_OF_32)
    return sum((raw[i] & 127) << 7 * (i - at) for i in range(at, end)), end


def _end_of_number(raw: bytes, at: int, most: int) -> int:
    for end in range(at + 1, at + most + 1):
        if raw[end - 1] < 128:
            return end
    raise _OddError


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _place(kind: type[Message], fields: tuple[str, ...]) -> _Place:
    numbers: list[int] = []
    descriptor: Any = kind.DESCRIPTOR
    for name in (*fields, "data"):
        field = descriptor.fields_by_name[name]
        numbers.append(field.number)
        descriptor = field.message_type
    return _Place(fields, tuple(number << 3 | _DELIMITED for number in numbers))


_FIELDS: dict[type[Message], tuple[tuple[str, ...], ...]] = {
    pb.WorkRequest: (("initial",), ("gradient",)),
    pb.WorkResponse: (("parameters",), ("differentiate", "parameters")),
}
_PLACES: dict[type, dict[str | None, _Place]] = {
    kind: {fields[0]: _place(kind, fields) for fields in all_fields} for kind, all_fields in _FIELDS.items()
}
_BY_TAG = {kind: {place.tags[0]: place for place in places.values()} for kind, places in _PLACES.items()}
