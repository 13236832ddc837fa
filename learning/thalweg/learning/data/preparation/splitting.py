"""Which samples are learned from, and which are held out to validate and to test with."""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError, listed
from thalweg.learning.data.order import MAX_PERMUTED, keeps_permutations, mixed
from thalweg.learning.data.preparation.kept import Kept, bitmap
from thalweg.learning.data.rows import Indices, Positions, positions
from thalweg.learning.randomness import Purpose, generator
from thalweg.v1 import job_pb2

# Up to this number of samples, the products from which a computed split follows fit in 64 bits.
_MAX_SAMPLES = 1 << 32
# The further key of the random numbers for the test samples. Those for the validation samples have none.
_TEST = 1
# Samples whose bits are made at once.
_AT_ONCE = 1 << 16


class Values(NamedTuple):
    """The values of a column, or of the targets, for all samples: an array of one axis, without missing values.

    Where there are `words`, values are positions among these.
    """

    values: NDArray[Any]
    words: tuple[str, ...] = ()


# Gives the values of a column by its name.
Column = Callable[[str], Values]


class Parts(NamedTuple):
    """The indices of the samples to learn from, to validate and to test with, each in rising order."""

    train: Positions
    validation: Positions
    test: Positions
    # For the user.
    notices: tuple[str, ...] = ()

    @property
    def indices(self) -> tuple[Positions, Positions, Positions]:
        """Those of the three parts."""
        return self.train, self.validation, self.test

    @property
    def shown(self) -> Positions:
        """Those that predictions are shown for: to validate with; else to test with; else all."""
        return next((indices for indices in (self.validation, self.test) if len(indices)), self.train)


def parts(data: job_pb2.Data, seed: int, samples: int, column: Column) -> Parts:
    """The division of a job's samples. The test samples are held out first, and the validation samples from the others.

    Parts that have files of their own get no samples here. Raises DataError if a fraction yields no samples or all, or if what
    it is chosen by is no column.
    """
    # Both may be chosen by the same one.
    column = functools.cache(column)
    others, test = _held_out(data.test, "data.test", seed, samples, column, data.order, _TEST)
    if data.validation_fraction and not data.HasField("validation"):
        field, wanted = "data.validation_fraction", job_pb2.HeldOut(fraction=data.validation_fraction)
    else:
        field, wanted = "data.validation", data.validation
    stratified = {each.stratify: about for about, each in ((field, wanted), ("data.test", data.test)) if each.stratify}
    notices = tuple(filter(None, (_singles(f"{about}.stratify", name, column(name)) for name, about in stratified.items())))
    if not len(test):
        return Parts(*_held_out(wanted, field, seed, samples, column, data.order), test, notices)

    def among(name: str) -> Values:
        return column(name)._replace(values=column(name).values[others[:]])

    train, validation = _held_out(wanted, field, seed, len(others), among, data.order)
    return Parts(_Among(others, train), _Among(others, validation), test, notices)


def _singles(field: str, name: str, column: Values) -> str:
    """What the user should know of values that one sample alone has, where samples of each value are held out."""
    values, counts = np.unique(column.values, return_counts=True)
    singles = sorted(column.words[value] if column.words else str(value) for value in values[counts == 1].tolist())
    if not singles or len(singles) == len(values):
        return ""
    several = f"{len(singles):,} values of {name!r} are each" if singles[1:] else f"a value of {name!r} is"
    return f"{field}: {several} in one sample alone, which is learned from or held out, not both: {listed(singles)}"


def _held_out(
    wanted: job_pb2.HeldOut, field: str, seed: int, samples: int, column: Column, order: str, *key: int
) -> tuple[Positions, Positions]:
    """The others, and the samples that are held out."""
    if not wanted.fraction:
        return split(seed, samples, 0, order, field, *key)
    by = wanted.WhichOneof("by")
    if by is None:
        return split(seed, samples, wanted.fraction, order, field, *key)
    values = column(getattr(wanted, by)).values
    count = _count(field, samples, wanted.fraction)
    chosen = _CHOICES[by](values, count, generator(seed, Purpose.SPLIT, *key))
    if chosen.all():
        raise DataError(f"{field}: holds out all samples, and leaves none to learn from; give a smaller fraction")
    return _indices(~chosen), _indices(chosen)


def _stratified(values: NDArray[np.generic], count: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """The same fraction of the samples of each value, rounded so that `count` are held out: by the largest remainders."""
    _, codes, totals = np.unique(values, return_inverse=True, return_counts=True)
    # In whole numbers: totals * count / samples, and what is left of it.
    shares, remainders = np.divmod(totals * count, len(values))
    largest = np.argsort(-remainders, kind="stable")[: count - shares.sum()]
    shares[largest] += 1
    chosen = np.zeros(len(values), np.bool_)
    by_value = np.argsort(codes, kind="stable")
    for rows, share in zip(np.split(by_value, np.cumsum(totals)[:-1]), shares, strict=True):
        chosen[random.permutation(rows)[:share]] = True
    return chosen


def _grouped(values: NDArray[np.generic], count: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Whole groups of equal values: in random order, each that brings the number of samples closer to `count`; at least one."""
    _, codes, totals = np.unique(values, return_inverse=True, return_counts=True)
    chosen, held_out = np.zeros(len(totals), np.bool_), 0
    for group, size in zip(order := random.permutation(len(totals)), totals[order].tolist(), strict=True):
        if abs(held_out + size - count) < abs(held_out - count):
            chosen[group] = True
            held_out += size
    if not held_out:
        chosen[np.argmin(totals)] = True
    return np.asarray(chosen[codes])


def _latest(values: NDArray[np.generic], count: int, _: np.random.Generator) -> NDArray[np.bool_]:
    """The samples with the `count` largest values, and those that have the same value as the smallest of these."""
    return np.asarray(values >= np.partition(values, len(values) - count)[len(values) - count])


_CHOICES: dict[str, Callable[[NDArray[np.generic], int, np.random.Generator], NDArray[np.bool_]]] = {
    "stratify": _stratified,
    "group": _grouped,
    "time": _latest,
}


def _indices(chosen: NDArray[np.bool_]) -> Positions:
    """Where values are true: kept as indices of few samples, as bits of many."""
    if len(chosen) <= MAX_PERMUTED:
        return np.flatnonzero(chosen)
    return Kept(bitmap(len(chosen), lambda rows: chosen[rows], _AT_ONCE))


def _count(field: str, samples: int, fraction: float) -> int:
    """floor(samples * fraction), a fraction of `field`. Raises DataError if a fraction above 0 yields none."""
    field = field if field.endswith("_fraction") else f"{field}.fraction"
    # The decimal number that was written, 0.29, is a little more than the double: 0.29 of 100 are 29, not 28.
    count = int(samples * Fraction(repr(fraction)))
    if fraction > 0 and count == 0:
        none = "0 for no validation" if field.endswith("validation_fraction") else "leave it out"
        raise DataError(
            f"{field}: {fraction:g} of {samples} sample{'' if samples == 1 else 's'} is less than one; give a larger fraction, "
            f"or {none}"
        )
    return count


class _Among:
    """Positions among others: those at `chosen` of `indices`."""

    def __init__(self, indices: Positions, chosen: Positions) -> None:
        self._indices = indices
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, indices: Indices) -> NDArray[np.intp]:
        return self._indices[self._chosen[indices]]


def split(
    seed: int, samples: int, fraction: float, order: str = "", field: str = "data.validation_fraction", *key: int
) -> tuple[Positions, Positions]:
    """The indices of the others, and of samples that are held out, each in rising order.

    floor(samples * fraction) are held out: the first of a permutation; or, if `order`, the job's `data.order`, has the order of
    that number of samples computed, one at random of each of as many parts of equal length. `key` distinguishes draws of one
    seed. Raises DataError if a fraction above 0 yields none.
    """
    held_out = _count(field, samples, fraction)
    if keeps_permutations(order, samples):
        permutation = generator(seed, Purpose.SPLIT, *key).permutation(samples)
        return np.sort(permutation[held_out:]), np.sort(permutation[:held_out])
    if samples > _MAX_SAMPLES:
        raise DataError(f"data: has {samples:,} samples; at most {_MAX_SAMPLES:,} can be used")
    drawn = generator(seed, Purpose.SPLIT, *key).integers(0, 1 << 64, dtype=np.uint64)
    few = Drawn(samples, min(held_out, samples - held_out), drawn)
    return (few, Others(few)) if held_out > samples - held_out else (Others(few), few)


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
        part = positions(indices, len(self))
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
        position, count = positions(indices, len(self)), len(self._drawn)
        if not count or not len(position):
            return position
        # Part j begins at floor(j * samples / count), so that floor(j * others / count) others are before it. The index at a
        # position is in the last part that has at most as many before it.
        part = ((position + 1) * count - 1) // len(self)
        index = position + part
        return index + (index >= self._drawn[part])
