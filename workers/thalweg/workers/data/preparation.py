"""How samples and targets are prepared, and split into those to learn from and those to validate with."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.v1 import job_pb2
from thalweg.workers.data.errors import DataError
from thalweg.workers.randomness import Purpose, generator

# One-hot vectors for more classes than this would be a mistake: a column of amounts taken for labels.
_MOST_CLASSES = 100_000


def as_targets(field: str, y: NDArray[Any], loss: str, one_hot: bool, dtype: np.dtype[np.floating]) -> NDArray[Any]:
    """Targets in the form that a loss takes. Raises DataError if they have none."""
    if one_hot:
        labels = _labels(field, y, "data.one_hot = true")
        classes = int(labels.max()) + 1
        if classes > _MOST_CLASSES:
            raise DataError(f"{field}: y has labels up to {classes - 1}; data.one_hot takes at most {_MOST_CLASSES} classes")
        return np.eye(classes, dtype=dtype)[labels]
    if loss == "softmax_cross_entropy" and y.ndim == 1:
        return _labels(field, y, "model.loss = softmax_cross_entropy")
    return y.astype(dtype)


def _labels(field: str, y: NDArray[Any], wanted_by: str) -> NDArray[np.int64]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"{field}: y has the shape {y.shape}, and {wanted_by} wants one label for each sample")
    wrong = np.flatnonzero((y < 0) | (y != np.floor(y)))
    if len(wrong):
        raise DataError(
            f"{field}: y has {y[wrong[0]]:g} at sample {wrong[0]}, and {wanted_by} wants labels: whole numbers from 0"
        )
    return y.astype(np.int64)


def split(seed: int, samples: int, validation_fraction: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The indices of training and of validation samples, each in rising order. Raises DataError if one would be empty."""
    validation = int(samples * validation_fraction)
    if validation_fraction > 0 and not 0 < validation < samples:
        raise DataError(
            f"data.validation_fraction: {validation_fraction:g} of {samples} samples leaves {validation} for validation and "
            f"{samples - validation} for training; both need at least 1. Use 0 for no validation"
        )
    order = generator(seed, Purpose.SPLIT).permutation(samples)
    return np.sort(order[validation:]), np.sort(order[:validation])


def standardization(x: NDArray[Any]) -> job_pb2.Preprocessing:
    """Mean and standard deviation of each feature over samples; 1 for a deviation of 0."""
    mean = np.asarray(np.mean(x, axis=0, dtype=np.float64))
    scale = np.asarray(np.std(x, axis=0, dtype=np.float64))
    return job_pb2.Preprocessing(mean=mean.ravel(), scale=np.where(scale > 0, scale, 1.0).ravel())


def preprocess(preprocessing: job_pb2.Preprocessing, x: NDArray[Any], dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    """Samples as the model sees them, of shape (samples, ...) and the given dtype."""
    if not preprocessing.mean:
        return np.asarray(x, dtype)
    shape = x.shape[1:]
    mean = np.array(preprocessing.mean).reshape(shape)
    scale = np.array(preprocessing.scale).reshape(shape)
    prepared: NDArray[np.floating] = ((x - mean) / scale).astype(dtype)
    return prepared
