"""The upper half of each float32."""

import numpy as np

from thalweg.contract.codecs.base import Bytes, Codec
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2


class Bfloat16(Codec[job_pb2.Bfloat16]):
    """The upper 16 bits of each float32, rounded to the nearest, ties to even. Infinite values and NaN stay unchanged."""

    parameters = True

    def _size(self, elements: int) -> int:
        return 2 * elements

    def _encode(self, values: Slab, out: Bytes) -> None:
        bits, halves = values.view(np.uint32), out.view("<u2")
        rounded = self.scratch("u4", values.size)
        # Adding just less than half a unit of the last kept bit, or half a unit if that bit is 1, carries where rounding goes up.
        np.right_shift(bits, 16, out=rounded)
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        halves[...] = rounded
        nan = np.isnan(values)
        if nan.any():
            # A NaN is cut, not rounded, which could change it to any value, and gets a bit that keeps it a NaN.
            halves[nan] = (bits[nan] >> 16) | 0x40

    def _decode(self, data: Bytes, out: Slab) -> None:
        np.left_shift(data.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)
