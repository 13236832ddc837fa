"""How inputs are prepared: standardized, and of the job's dtype."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.contract.layout import ranges
from thalweg.learning.data.checks import check_numbers, check_prepared
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.rows import Mapped, Rows
from thalweg.v1 import job_pb2

# Samples that are converted to double precision at once.
_BLOCK = 1024


def preprocess(preprocessing: job_pb2.Preprocessing, x: NDArray[Any], dtype: np.dtype[np.floating]) -> NDArray[Any]:
    """Samples as the model gets them, of shape (samples, ...): standardized ones and real numbers of the given dtype.

    What that cannot hold becomes infinite. Integers that are not standardized stay integers, unless the model was trained on real
    numbers.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if preprocessing.divisor:
            return np.asarray(np.divide(x, preprocessing.divisor, dtype=dtype))
        if not preprocessing.mean:
            return np.ascontiguousarray(x, _prepared_dtype(preprocessing, x.dtype, dtype))
        mean = np.array(preprocessing.mean).reshape(x.shape[1:])
        scale = np.array(preprocessing.scale).reshape(x.shape[1:])
        prepared = np.empty(x.shape, dtype)
        for block in ranges(len(x), _BLOCK):
            prepared[block] = (x[block] - mean) / scale
    return prepared


def prepared_rows(preprocessing: job_pb2.Preprocessing, x: Rows, dtype: np.dtype[np.floating]) -> Rows:
    """As `preprocess`, of rows that are prepared when they are taken."""
    made = _prepared_dtype(preprocessing, x.dtype, dtype)
    return Mapped(x, lambda rows: preprocess(preprocessing, rows, dtype), x.shape[1:], made)


def _prepared_dtype(preprocessing: job_pb2.Preprocessing, given: np.dtype[Any], dtype: np.dtype[np.floating]) -> np.dtype[Any]:
    """The dtype of prepared samples."""
    real = preprocessing.mean or preprocessing.divisor or given.kind == "f" or preprocessing.dtype.startswith("float")
    return dtype if real else given.newbyteorder("=")


def prepare(x: ArrayLike, preprocessing: job_pb2.Preprocessing, dtype: np.dtype[np.floating]) -> Rows:
    """Samples `x`, samples first, as a model trained with `preprocessing` gets them: made by `preprocess` when they are taken.

    Raises DataError, whose message begins with "x", if they are not samples of the kind that it was trained on.
    """
    try:
        samples = np.asarray(x)
    except Exception as error:
        # Tensors of other libraries raise errors of theirs.
        raise DataError(f"x: is not an array: {error}") from error
    check_numbers("x:", samples)
    shape, mean = tuple(preprocessing.shape), len(preprocessing.mean)
    if shape and samples.shape[1:] != shape:
        hint = "; for one sample, give [x]" if samples.shape == shape else ""
        wanted = (
            f"the job was trained on samples of shape {shape}, so x must have the shape (samples, {', '.join(map(str, shape))})"
        )
        raise DataError(f"x: has the shape {samples.shape}; {wanted}{hint}")
    # A job that does not state the shape.
    if mean and math.prod(samples.shape[1:]) != mean:
        raise DataError(f"x: has the shape {samples.shape}; the job was trained on {mean} features")
    prepared = prepared_rows(preprocessing, samples, dtype)
    check_prepared("x:", prepared)
    return prepared
