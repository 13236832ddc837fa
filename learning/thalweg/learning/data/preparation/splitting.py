"""Which samples are learned from, and which are held out to validate with."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.order import keeps_permutations, mixed
from thalweg.learning.data.rows import Indices, Positions
from thalweg.learning.randomness import Purpose, generator

# Up to this number of samples, the products from which a computed split follows fit in 64 bits.
_MAX_SAMPLES = 1 << 32


def split(seed: int, samples: int, validation_fraction: float, order: str = "") -> tuple[Positions, Positions]:
    """The indices of training and of validation samples, each in rising order.

    Validation gets floor(samples * fraction) of them: the first of a permutation; or, if `order`, the job's `data.order`, has the
    order of that number of samples computed, one at random of each of as many parts of equal length. Raises DataError if a
    fraction above 0 yields none.
    """
    # The decimal number that was written, 0.29, is a little more than the double: 0.29 of 100 are 29, not 28.
    validation = int(samples * Fraction(repr(validation_fraction)))
    if validation_fraction > 0 and validation == 0:
        raise DataError(
            f"data.validation_fraction: {validation_fraction:g} of {samples} sample{'' if samples == 1 else 's'} is less than "
            "one; give a larger fraction, or 0 for no validation"
        )
    if keeps_permutations(order, samples):
        permutation = generator(seed, Purpose.SPLIT).permutation(samples)
        return np.sort(permutation[validation:]), np.sort(permutation[:validation])
    if samples > _MAX_SAMPLES:
        raise DataError(f"data: has {samples:,} samples; at most {_MAX_SAMPLES:,} can be used")
    key = generator(seed, Purpose.SPLIT).integers(0, 1 << 64, dtype=np.uint64)
    few = Drawn(samples, min(validation, samples - validation), key)
    return (few, Others(few)) if validation > samples - validation else (Others(few), few)


class Drawn:
    """One index of each of `count` parts of nearly equal length, drawn with a key: computed on demand, in rising order.

    There are at least two for each: `count` is at most half the samples.
    """

    def __init__(self, samples: int, count: int, key: np.uint64) -> None:
        self.samples = samples
        self._count = count
        self._key = key

    def __len__(self) -> int:
        """The number of indices."""
        return self._count

    def __getitem__(self, indices: Indices) -> NDArray[np.intp]:
        """The indices of some parts."""
        part = _positions(indices, len(self))
        start = part * self.samples // self._count if len(part) else part
        length = ((part + 1) * self.samples // self._count if len(part) else part) - start
        offset = mixed(part.astype(np.uint64) ^ self._key) % length.astype(np.uint64)
        return start + offset.astype(np.intp)


class Others:
    """The indices that were not drawn, in rising order."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn

    def __len__(self) -> int:
        """The number of indices."""
        return self._drawn.samples - len(self._drawn)

    def __getitem__(self, indices: Indices) -> NDArray[np.intp]:
        """The indices at some positions among the others."""
        position, count = _positions(indices, len(self)), len(self._drawn)
        if not count or not len(position):
            return position
        # Part j begins at floor(j * samples / count), so that floor(j * others / count) others are before it. The index at a
        # position is in the last part that has at most as many before it.
        part = ((position + 1) * count - 1) // len(self)
        index = position + part
        return index + (index >= self._drawn[part])


def _positions(indices: Indices, length: int) -> NDArray[np.intp]:
    return np.arange(*indices.indices(length), dtype=np.intp) if isinstance(indices, slice) else indices
