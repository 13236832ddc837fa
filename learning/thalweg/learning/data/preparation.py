"""How samples and targets are prepared, and split into those to learn from and those to validate with."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.contract.layout import ranges
from thalweg.learning.data.checks import check_numbers, check_prepared
from thalweg.learning.data.errors import DataError
from thalweg.learning.randomness import Purpose, generator
from thalweg.v1 import job_pb2

# Labels for more classes than this would be a mistake: a column of amounts taken for labels.
_MAX_CLASSES = 100_000
# Features of which something is kept, a mean, a deviation, a name: with room to spare in a message of 4 MiB.
MAX_FEATURES = 1 << 17
# Samples that are converted to double precision at once.
_BLOCK = 1024


def as_targets(field: str, y: NDArray[Any], loss: str, one_hot: bool, dtype: np.dtype[np.floating]) -> NDArray[Any]:
    """Targets in the form that a loss takes: labels, int64 of shape (samples), or numbers of the given dtype.

    Softmax cross-entropy takes labels, or, of more than one column, probabilities. One-hot vectors have as many elements as the
    largest label plus one. Raises DataError if the targets have no such form.
    """
    if one_hot:
        labels = _labels(field, y, "data.one_hot = true")
        vectors = np.zeros((len(labels), int(labels.max()) + 1), dtype)
        vectors[np.arange(len(labels)), labels] = 1
        return vectors
    if loss != "softmax_cross_entropy":
        return _cast(field, "y", y, dtype)
    if y.ndim == 1 or y.shape[1:] == (1,):
        return _labels(field, y, "model.loss = softmax_cross_entropy")
    if np.any((y < 0) | (y > 1)):
        sample = int(np.argwhere((y < 0) | (y > 1))[0][0])
        raise DataError(
            f"{field}: y has the shape {y.shape}, which model.loss = softmax_cross_entropy treats as probabilities, but holds "
            f"numbers below 0 or above 1, the first at sample {sample} (counted from 0)"
        )
    return _cast(field, "y", y, dtype)


def _labels(field: str, y: NDArray[Any], wanted_by: str) -> NDArray[np.int64]:
    if y.shape[1:] == (1,):
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"{field}: y has the shape {y.shape}, but {wanted_by} needs one label for each sample")
    wrong = np.flatnonzero((y < 0) | (y != np.floor(y)) | (y >= _MAX_CLASSES))
    if len(wrong):
        raise DataError(
            f"{field}: y has {y[wrong[0]]:.15g} at sample {wrong[0]} (counted from 0), but {wanted_by} needs labels: whole "
            f"numbers from 0 to at most {_MAX_CLASSES - 1}"
        )
    return y.astype(np.int64)


def split(seed: int, samples: int, validation_fraction: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The indices of training and of validation samples, each in rising order.

    Validation gets the first floor(samples * fraction) of a permutation. Raises DataError if a fraction above 0 yields none.
    """
    # The decimal number that was written, 0.29, is a little more than the double: 0.29 of 100 are 29, not 28.
    validation = int(samples * Fraction(repr(validation_fraction)))
    if validation_fraction > 0 and validation == 0:
        raise DataError(
            f"data.validation_fraction: {validation_fraction:g} of {samples} sample{'' if samples == 1 else 's'} is less than "
            "one; give a larger fraction, or 0 for no validation"
        )
    order = generator(seed, Purpose.SPLIT).permutation(samples)
    return np.sort(order[validation:]), np.sort(order[:validation])


def standardization(x: NDArray[Any]) -> job_pb2.Preprocessing:
    """Mean and standard deviation of each feature over samples, in double precision; 1 for a deviation of 0.

    Raises DataError if there are more features than a message holds.
    """
    if x[0].size > MAX_FEATURES:
        raise DataError(f"data.standardize: a sample has {x[0].size:,} features; at most {MAX_FEATURES:,} are standardized")
    mean = np.asarray(np.mean(x, axis=0, dtype=np.float64))
    squares = np.zeros(mean.shape)
    for block in ranges(len(x), _BLOCK):
        squares += np.sum((x[block].astype(np.float64) - mean) ** 2, axis=0)
    # The mean of equal numbers may be off by a rounding, and dividing by that would make it one whole deviation.
    constant = np.min(x, axis=0) == np.max(x, axis=0)
    mean = np.where(constant, x[0].astype(np.float64), mean)
    scale = np.sqrt(squares / len(x))
    return job_pb2.Preprocessing(mean=mean.ravel(), scale=np.where(constant | (scale == 0), 1.0, scale).ravel())


def preprocess(preprocessing: job_pb2.Preprocessing, x: NDArray[Any], dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    """Samples as the model sees them, of shape (samples, ...) and the given dtype. What it cannot hold becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if not preprocessing.mean:
            return np.ascontiguousarray(x, dtype)
        mean = np.array(preprocessing.mean).reshape(x.shape[1:])
        scale = np.array(preprocessing.scale).reshape(x.shape[1:])
        prepared = np.empty(x.shape, dtype)
        for block in ranges(len(x), _BLOCK):
            prepared[block] = (x[block] - mean) / scale
    return prepared


def prepare(x: ArrayLike, preprocessing: job_pb2.Preprocessing, dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    """Samples `x`, samples first, as a model trained with `preprocessing` sees them: of the same shape, and of `dtype`.

    Raises DataError, whose message begins with "x", if they are not samples of the kind that it was trained on.
    """
    try:
        samples = np.asarray(x)
    except ValueError as error:
        raise DataError(f"x: is not an array: {error}") from error
    check_numbers("x:", samples)
    shape, mean = tuple(preprocessing.shape), len(preprocessing.mean)
    if shape and samples.shape[1:] != shape:
        hint = "; for one sample, give [x]" if samples.shape == shape else ""
        wanted = (
            f"the job was trained on samples of shape {shape}, so x must have the shape (samples, {', '.join(map(str, shape))})"
        )
        raise DataError(f"x: has the shape {samples.shape}; {wanted}{hint}")
    # Of a job that says no shape.
    if mean and math.prod(samples.shape[1:]) != mean:
        raise DataError(f"x: has the shape {samples.shape}; the job was trained on {mean} features")
    prepared = preprocess(preprocessing, samples, dtype)
    check_prepared("x:", prepared)
    return prepared


def _cast(field: str, name: str, values: NDArray[Any], dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    cast = preprocess(job_pb2.Preprocessing(), values, dtype)
    check_prepared(f"{field}: {name}", cast)
    return cast
