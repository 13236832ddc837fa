"""Samples: what batches are taken from, in memory or not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import ranges
from thalweg.learning.batch import Batch, Field, Schema
from thalweg.learning.data.rows import BLOCK_BYTES, FileRows, Indices, Rows

ALL = slice(None)

Out: TypeAlias = Mapping[str, NDArray[Any]]


class Samples(Protocol):
    """A number of samples of one schema, each with a position, counted from 0."""

    @property
    def schema(self) -> Schema:
        """The fields, each with its dtype and the shape of one sample."""

    @property
    def groups(self) -> Sequence[int]:
        """Of samples that are read by groups, the number of samples up to the end of each; otherwise none."""

    def __len__(self) -> int: ...

    def take(self, indices: Indices, out: Out | None = None) -> Batch:
        """Samples by position. In the arrays `out`, if those are given, which have room for exactly as many."""


class Arrays:
    """Samples that are arrays of equal length, the samples on the first axis of each: in memory, or rows made on demand."""

    def __init__(self, fields: Mapping[str, Rows]) -> None:
        self._fields = dict(fields)

    @property
    def schema(self) -> Schema:
        """The fields, each with its dtype and the shape of one sample."""
        return {name: Field(values.dtype, values.shape[1:]) for name, values in self._fields.items()}

    @property
    def groups(self) -> Sequence[int]:
        """None: any sample can be taken by itself."""
        return ()

    @property
    def in_memory(self) -> bool:
        """Whether all are in memory: none is read or made when it is taken."""
        return all(isinstance(values, np.ndarray) for values in self._fields.values())

    def __len__(self) -> int:
        """The number of samples."""
        return len(next(iter(self._fields.values())))

    def take(self, indices: Indices, out: Out | None = None) -> Batch:
        """Samples by position. Of a range, without `out`, read-only views where they are in memory."""
        if out is None:
            return {name: values[indices] for name, values in self._fields.items()}
        for name, values in self._fields.items():
            if isinstance(values, np.ndarray) and not isinstance(indices, slice):
                # Every index is right; without a mode NumPy would look, and gather to another array first.
                np.take(values, indices, axis=0, out=out[name], mode="clip")
            elif isinstance(values, FileRows):
                values.read(indices, out[name])
            else:
                out[name][...] = values[indices]
        return out


def sample_bytes(schema: Schema) -> int:
    """The bytes of one sample."""
    return sum(field.dtype.itemsize * math.prod(field.shape) for field in schema.values())


def blocks(samples: Samples) -> Iterator[slice]:
    """Cuts all positions into ranges of at most BLOCK_BYTES of samples, or of one sample."""
    return ranges(len(samples), max(1, BLOCK_BYTES // max(1, sample_bytes(samples.schema))))


def held(samples: Samples) -> Arrays:
    """A copy of samples in memory, made block by block."""
    fields = {name: np.empty((len(samples), *field.shape), field.dtype) for name, field in samples.schema.items()}
    for block in blocks(samples):
        samples.take(block, {name: values[block] for name, values in fields.items()})
    return Arrays(fields)
