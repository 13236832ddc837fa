"""Samples that are computed with at once: named arrays, the samples on the first axis of each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Batch = Mapping[str, NDArray[Any]]

# The fields of samples with one input and one target.
INPUT = "x"
TARGET = "y"


class Field(NamedTuple):
    """What a field of a batch holds: the dtype of its elements, and the shape of one sample."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


Schema = Mapping[str, Field]


def size(batch: Batch) -> int:
    """The number of samples."""
    return len(next(iter(batch.values())))


def inputs(batch: Batch) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """What a model of the user's takes: the input, or, of several, all by name."""
    given = {name: values for name, values in batch.items() if name != TARGET}
    return next(iter(given.values())) if len(given) == 1 else given


def in_double(batch: Batch) -> Batch:
    """The batch with real numbers in double precision. Integers stay as they are."""
    return {name: values.astype(np.float64) if values.dtype.kind == "f" else values for name, values in batch.items()}
