"""What a model learns from: loaded, checked, prepared and split, as a pure function of the job and its file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.batch import INPUT, TARGET, Schema
from thalweg.learning.data import columns, npz, table
from thalweg.learning.data.checks import check_numbers, check_prepared
from thalweg.learning.data.columns import Found, Source
from thalweg.learning.data.errors import DataError, MemoryLackError
from thalweg.learning.data.memory import check_memory
from thalweg.learning.data.preparation import as_targets, prepare, preprocess, split, standardization
from thalweg.learning.data.samples import Arrays, Samples
from thalweg.learning.data.sources import SOURCES
from thalweg.v1 import job_pb2

__all__ = [
    "Arrays",
    "DataError",
    "Dataset",
    "Found",
    "MemoryLackError",
    "Samples",
    "Source",
    "held_out",
    "load",
    "prepare",
    "preprocess",
    "read",
    "read_samples",
]


class Dataset(NamedTuple):
    """Samples to learn from and to validate with, prepared as the model sees them.

    Today's have an input `x`, of the job's dtype, and a target `y`: a label, int64, or numbers of the job's dtype.
    """

    train: Samples
    validation: Samples
    preprocessing: job_pb2.Preprocessing

    @property
    def schema(self) -> Schema:
        """The fields of a sample."""
        return self.train.schema


def load(spec: job_pb2.JobSpec, fetch: Callable[[str], Path]) -> Dataset:
    """The data of a job whose specification has its defaults filled in.

    `fetch` gives the file that was uploaded under a SHA-256. Raises DataError if the data is not right.
    """
    data, dtype = spec.data, np.dtype(spec.model.dtype)
    field = f"data.{data.WhichOneof('source')}"
    source = read(data, fetch)
    x, y = source.x, source.y
    _check(field, x, y)
    # All samples once as the model sees them, and once more in two parts.
    check_memory(f"{field}: preparing {len(x):,} samples", 2 * x.size * dtype.itemsize)
    targets = as_targets(field, y, spec.model.loss, data.one_hot, dtype)
    train, validation = split(spec.seed, len(x), data.validation_fraction)
    with np.errstate(over="ignore", invalid="ignore"):
        preprocessing = standardization(x[train]) if data.standardize else job_pb2.Preprocessing()
    if not np.isfinite(preprocessing.scale).all():
        raise DataError(f"{field}: x holds numbers that are too large to be standardized; scale them, or remove them")
    prepared = preprocess(preprocessing, x, dtype)
    check_prepared(f"{field}: x", prepared)
    preprocessing.shape.extend(x.shape[1:])
    preprocessing.columns.extend(source.columns)
    preprocessing.target = source.target
    first, second = (Arrays({INPUT: prepared[chosen], TARGET: targets[chosen]}) for chosen in (train, validation))
    return Dataset(first, second, preprocessing)


def held_out(spec: job_pb2.JobSpec, fetch: Callable[[str], Path]) -> Source:
    """A job's validation samples as they stand in the source; of a job without any, its training samples.

    `spec` has its defaults filled in. Raises DataError if the data cannot be read.
    """
    source = read(spec.data, fetch)
    train, validation = split(spec.seed, len(source.x), spec.data.validation_fraction)
    chosen = validation if len(validation) else train
    return source._replace(x=source.x[chosen], y=source.y[chosen])


def read(data: job_pb2.Data, fetch: Callable[[str], Path]) -> Source:
    """Samples and targets as they stand in the source. Raises DataError if it cannot be read."""
    return SOURCES[str(data.WhichOneof("source"))](data, fetch)


def read_samples(
    path: Path, data: job_pb2.Data, preprocessing: job_pb2.Preprocessing, features: int, header: bool | None = None
) -> Found:
    """Samples to predict from, out of a .csv, .npy or .npz file, for a job that was trained on `data`.

    `features` is the number of features of a sample, -1 if that is unknown; `header` says whether a table has a line of column
    names, if that differs from `data.header`. Raises DataError, whose message begins with "INPUT", or OSError.
    """
    words, name = table.TO_PREDICT, path.name
    if path.suffix.lower() != ".csv" and npz.is_numpys(path):
        return Found(npz.load_samples(path, words.field, name))
    if path.suffix.lower() in (".npy", ".npz"):
        raise DataError(f"{words.field}: {name!r} is not a NumPy file; write one with numpy.save")
    found = table.read(path, words, name, columns.header_of(data) if header is None else header)
    return columns.to_predict(found, name, preprocessing, data.target, features)


def _check(field: str, x: NDArray[Any], y: NDArray[Any]) -> None:
    for name, values in (("x", x), ("y", y)):
        check_numbers(f"{field}: {name}", values)
    if len(x) != len(y):
        raise DataError(f"{field}: x has {len(x)} samples but y has {len(y)}; the counts must match")
    if x.ndim == 1:
        raise DataError(f"{field}: x has the shape {x.shape}; it needs an axis for the features too, as in x.reshape(-1, 1)")
    if len(x) == 0:
        raise DataError(f"{field}: has no samples")
    if x[0].size == 0:
        raise DataError(f"{field}: x has the shape {x.shape}: its samples have no features")
