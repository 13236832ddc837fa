"""Sets of chunks, as whole numbers: bit c says whether chunk c is in the set. A thousand chunks cost as much as one."""

from collections.abc import Iterator


def bits(chunks: range) -> int:
    """The set of the chunks of a range."""
    return ((1 << len(chunks)) - 1) << chunks.start


def runs(chunks: int) -> Iterator[range]:
    """The chunks of a set, as ranges, in order."""
    start = 0
    while chunks:
        gap = (chunks & -chunks).bit_length() - 1
        chunks >>= gap
        length = (~chunks & (chunks + 1)).bit_length() - 1
        yield range(start + gap, start + gap + length)
        chunks >>= length
        start += gap + length
