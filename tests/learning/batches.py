"""Batches and data sets of arrays, for tests."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.batch import INPUT, TARGET, Batch, Field, Schema
from thalweg.learning.data import Arrays, Dataset, Samples
from thalweg.learning.data.samples import ALL
from thalweg.v1 import job_pb2


def schema(shape: tuple[int, ...]) -> Schema:
    """Of inputs of a shape."""
    return {INPUT: Field(np.dtype(np.float32), shape)}


def schema_of(samples: Batch) -> Schema:
    """The fields of samples."""
    return {name: Field(values.dtype, values.shape[1:]) for name, values in samples.items()}


def batch(x: NDArray[Any], y: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {INPUT: x, TARGET: y}


def dataset(x: NDArray[Any], y: NDArray[Any]) -> Dataset:
    """All samples to train on, and none to validate with."""
    return Dataset(Arrays(batch(x, y)), Arrays(batch(x[:0], y[:0])), Arrays(batch(x[:0], y[:0])), job_pb2.Preprocessing())


def told(error: object, field: str, name: str) -> str:
    """What an error says about a field and a file, without the file's name, which must be there, after the field."""
    text = str(error)
    assert repr(name) in text
    return text.replace(f"{field}: {name!r}: ", f"{field}: ", 1)


def inputs(samples: Samples) -> NDArray[Any]:
    return samples.take(ALL)[INPUT]


def targets(samples: Samples) -> NDArray[Any]:
    return samples.take(ALL)[TARGET]
