"""IEEE 754's binary16.

NumPy's own conversion gives the same bits, but takes up to forty times as long for numbers that are small or of very different
sizes, such as gradients.
"""

import numpy as np

from thalweg.contract.codecs.base import Bytes, Codec
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2

_UP, _DOWN = np.float32(2.0**112), np.float32(2.0**-110)


class Float16(Codec[job_pb2.Float16]):
    """Rounded to the nearest, ties to even. Beyond 65,504 a number becomes infinite, as in IEEE 754, and NaN stays NaN.

    An infinite gradient ends a job as diverged. The largest finite number in its place would be a wrong gradient that is not
    noticed.
    """

    parameters = True

    def __init__(self, settings: job_pb2.Float16, chunk_elements: int) -> None:
        super().__init__(settings, chunk_elements)
        self._table = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)

    def _size(self, elements: int) -> int:
        return 2 * elements

    def _encode(self, values: Slab, out: Bytes) -> None:
        """After M. Dukhan's FP16 library, `fp16_ieee_from_fp32_value`.

        A power of two is added whose last bit has the value of the half's last bit, so that the addition rounds.
        """
        bits, halves = values.view(np.uint32), out.view("<u2")
        power, sums = self.scratch("u4", values.size), self.scratch("f4", values.size)
        summed = sums.view(np.uint32)
        np.left_shift(bits, 1, out=power)
        power &= 0xFF000000
        np.maximum(power, 0x71000000, out=power)
        power >>= 1
        power += 0x07800000
        np.abs(values, out=sums)
        # Scaled up, so that numbers that are too large become infinite, then down by four powers less.
        sums *= _UP
        sums *= _DOWN
        sums += power.view(np.float32)
        exponent = np.right_shift(summed, 13, out=power)
        exponent &= 0x7C00
        summed &= 0x0FFF
        exponent += summed
        sign = np.right_shift(bits, 16, out=summed)
        sign &= 0x8000
        halves[...] = np.bitwise_or(exponent, sign, out=power)
        nan = np.isnan(values)
        if nan.any():
            halves[nan] = 0x7E00

    def _decode(self, data: Bytes, out: Slab) -> None:
        np.take(self._table, data.view("<u2"), out=out, mode="clip")
