"""Samples: what batches are taken from, whatever they are kept in."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.batch import Batch, Schema, schema_of, size

# Which samples: their positions, or a range of positions.
Indices: TypeAlias = NDArray[np.intp] | slice
ALL = slice(None)


class Samples(Protocol):
    """A number of samples of one schema, each with a position, counted from 0."""

    @property
    def schema(self) -> Schema:
        """The fields, each with its dtype and the shape of one sample."""

    def __len__(self) -> int: ...

    def take(self, indices: Indices, out: Mapping[str, NDArray[Any]] | None = None) -> Batch:
        """Samples by position. In the arrays `out`, if those are given, which have room for exactly as many."""


class Arrays:
    """Samples that are held in memory: arrays of equal length, the samples on the first axis of each."""

    def __init__(self, fields: Mapping[str, NDArray[Any]]) -> None:
        self._fields = dict(fields)

    @property
    def schema(self) -> Schema:
        """The fields, each with its dtype and the shape of one sample."""
        return schema_of(self._fields)

    def __len__(self) -> int:
        """The number of samples."""
        return size(self._fields)

    def take(self, indices: Indices, out: Mapping[str, NDArray[Any]] | None = None) -> Batch:
        """Samples by position. Of a range, without `out`, read-only views."""
        if out is None:
            return {name: values[indices] for name, values in self._fields.items()}
        for name, values in self._fields.items():
            if isinstance(indices, slice):
                out[name][...] = values[indices]
            else:
                # Every index is right; without a mode NumPy would look, and gather to another array first.
                np.take(values, indices, axis=0, out=out[name], mode="clip")
        return out
