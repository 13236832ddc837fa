"""Whole numbers of one byte, with a scale for each block."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.codecs.base import Bytes, Codec
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2

_STEPS = np.float32(127)
_MIN_SCALE = np.finfo(np.float32).tiny


class Int8(Codec[job_pb2.Int8]):
    """The nearest whole numbers from -127 to 127 times the scale of their block, which is its largest magnitude / 127.

    All scales come first, then the numbers. A block with a value that is not finite has the scale NaN, and decodes to NaN. A
    scale less than 1.2e-38 is replaced by 0.
    """

    feedback = True

    def __init__(self, settings: job_pb2.Int8, chunk_elements: int) -> None:
        super().__init__(settings, chunk_elements)
        self._block = int(settings.block)

    def _size(self, elements: int) -> int:
        return 4 * -(-elements // self._block) + elements

    def _encode(self, values: Slab, out: Bytes) -> None:
        scales, numbers = self._parts(out, values.size)
        scaled = self.scratch("f4", values.size)
        start = 0
        for block, whole, near in zip(self._blocks(values), self._blocks(numbers), self._blocks(scaled), strict=True):
            np.abs(block, out=near)
            scale = np.maximum.reduce(near, axis=1) / _STEPS
            scale[scale < _MIN_SCALE] = 0
            inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
            np.multiply(block, inverse[:, np.newaxis], out=near)
            np.rint(near, out=near)
            broken = ~np.isfinite(scale)
            if broken.any():
                scale[broken] = np.nan
                near[broken] = 0
            whole[...] = near
            scales[start : start + len(block)] = scale
            start += len(block)

    def _decode(self, data: Bytes, out: Slab) -> None:
        scales, numbers = self._parts(data, out.size)
        if (scales < 0).any() or np.isinf(scales).any():
            raise ValueError("has a scale that is negative or infinite")
        start = 0
        for whole, block in zip(self._blocks(numbers), self._blocks(out), strict=True):
            np.multiply(whole, scales[start : start + len(block), np.newaxis], out=block)
            start += len(block)

    def _parts(self, data: Bytes, elements: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """The scales and the numbers in a chunk's bytes."""
        end = data.size - elements
        return data[:end].view("<f4"), data[end:].view(np.int8)

    def _blocks(self, values: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """A chunk's whole blocks, as the rows of an array, and its last block, which is shorter, as an array of one row."""
        end = values.size - values.size % self._block
        if end:
            yield values[:end].reshape(-1, self._block)
        if end < values.size:
            yield values[end:].reshape(1, -1)
