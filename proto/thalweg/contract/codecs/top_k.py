"""Only the largest values."""

import math

import numpy as np

from thalweg.contract.codecs.base import Bytes, Codec
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2


class TopK(Codec[job_pb2.TopK]):
    """Positions and values of a fraction of a chunk's values: those of the largest magnitude. The others decode to 0.

    Among equal magnitudes, the first ones are chosen. NaN counts as larger than all numbers.
    """

    feedback = True

    def __init__(self, settings: job_pb2.TopK, chunk_elements: int) -> None:
        super().__init__(settings, chunk_elements)
        self._fraction = float(settings.fraction)

    def _kept(self, elements: int) -> int:
        return math.ceil(self._fraction * elements)

    def _size(self, elements: int) -> int:
        return 8 * self._kept(elements)

    def _encode(self, values: Slab, out: Bytes) -> None:
        kept = self._kept(values.size)
        # Without its sign bit, a float's bits are ordered as its magnitude, with NaN beyond infinity.
        magnitudes = np.bitwise_and(values.view(np.uint32), 0x7FFFFFFF, out=self.scratch("u4", values.size))
        least = np.partition(magnitudes, values.size - kept)[values.size - kept]
        positions = np.flatnonzero(magnitudes > least)
        if positions.size < kept:
            equal = np.flatnonzero(magnitudes == least)[: kept - positions.size]
            positions = np.sort(np.concatenate((positions, equal)))
        out[: 4 * kept].view("<u4")[...] = positions
        out[4 * kept :].view("<f4")[...] = values[positions]

    def _decode(self, data: Bytes, out: Slab) -> None:
        kept = self._kept(out.size)
        positions = data[: 4 * kept].view("<u4")
        if positions[-1] >= out.size or not (positions[1:] > positions[:-1]).all():
            raise ValueError(f"has positions that do not rise, or go beyond {out.size - 1}")
        out[...] = 0
        out[positions] = data[4 * kept :].view("<f4")
