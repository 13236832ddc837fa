"""What becomes of valid bytes on a bad way: bits turn, pieces are lost, doubled, moved and made of nothing."""

import random
from collections.abc import Callable

_MAX_BYTES = 3 << 20


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """The bytes after one to three mutations."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        raw = draw.choice(_ALL)(raw, draw)[:_MAX_BYTES]
    return raw


def _cut(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw) + 1)]


def _turn(raw: bytes, draw: random.Random) -> bytes:
    """Some bits are others."""
    if not raw:
        return b"\xff"
    turned = bytearray(raw)
    for _ in range(draw.choice((1, 1, 4, 16))):
        turned[draw.randrange(len(turned))] ^= 1 << draw.randrange(8)
    return bytes(turned)


def _lose(raw: bytes, draw: random.Random) -> bytes:
    begin, end = _piece(raw, draw)
    return raw[:begin] + raw[end:]


def _double(raw: bytes, draw: random.Random) -> bytes:
    begin, end = _piece(raw, draw)
    return raw[:end] + raw[begin:]


def _insert(raw: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(raw) + 1)
    return raw[:at] + draw.randbytes(draw.choice((1, 2, 8, 64))) + raw[at:]


def _field(raw: bytes, draw: random.Random) -> bytes:
    """One more field, of any number, and of any type on the wire, valid or not."""
    tag = draw.choice((draw.randrange(1, 32), draw.randrange(1 << 14), (1 << 29) - 1)) << 3 | draw.randrange(8)
    value = draw.choice((b"", b"\0", b"\x01x", b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", draw.randbytes(9)))
    return raw + _varint(tag) + value


def _nest(raw: bytes, draw: random.Random) -> bytes:
    """It becomes the content of a field, of that the content of a field, and so on."""
    number = draw.randrange(1, 20)
    for _ in range(draw.choice((1, 1, 3, 150))):
        raw = _varint(number << 3 | 2) + _varint(len(raw)) + raw
    return raw


def _repeat(raw: bytes, draw: random.Random) -> bytes:
    """The same again: fields that are not repeated then come several times."""
    most = draw.choice((1 << 12, 1 << 12, 1 << 16, _MAX_BYTES))
    return raw * min(draw.choice((2, 2, 30, 100_000)), 1 + most // (len(raw) + 1))


def _noise(_: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice((1, 3, 3, 30, 30, 30, 1_000, 1_000, 100_000)))


def _piece(raw: bytes, draw: random.Random) -> tuple[int, int]:
    begin = draw.randrange(len(raw) + 1)
    return begin, min(len(raw), begin + draw.choice((1, 2, 8, 100)))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes((*encoded, number))


_ALL: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut,
    _turn,
    _lose,
    _double,
    _insert,
    _field,
    _nest,
    _repeat,
    _noise,
)
