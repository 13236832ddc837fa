"""What a model learns from: loaded, checked, prepared and split, as a pure function of the job and its file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.v1 import job_pb2
from thalweg.workers.data import builtins, csv, npz
from thalweg.workers.data.errors import DataError
from thalweg.workers.data.preparation import as_targets, check_prepared, preprocess, split, standardization

__all__ = ["DataError", "Dataset", "arrays", "load", "preprocess"]


class Dataset(NamedTuple):
    """Samples `x`, of the job's dtype, and targets `y`: labels, int64 of shape (samples), or of the job's dtype."""

    train_x: NDArray[np.floating]
    train_y: NDArray[Any]
    validation_x: NDArray[np.floating]
    validation_y: NDArray[Any]
    preprocessing: job_pb2.Preprocessing

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.train_x.shape[1:]


def load(spec: job_pb2.JobSpec, fetch: Callable[[str], Path]) -> Dataset:
    """The data of a job whose specification has its defaults filled in.

    `fetch` gives the file that was uploaded under a SHA-256. Raises DataError if the data is not right.
    """
    data, dtype = spec.data, np.dtype(spec.model.dtype)
    field = f"data.{data.WhichOneof('source')}"
    x, y = arrays(data, fetch)
    _check(field, x, y)
    targets = as_targets(field, y, spec.model.loss, data.one_hot, dtype)
    train, validation = split(spec.seed, len(x), data.validation_fraction)
    with np.errstate(over="ignore", invalid="ignore"):
        preprocessing = standardization(x[train]) if data.standardize else job_pb2.Preprocessing()
    check_prepared(field, "x", np.array(preprocessing.scale))
    prepared = preprocess(preprocessing, x, dtype)
    check_prepared(field, "x", prepared)
    return Dataset(prepared[train], targets[train], prepared[validation], targets[validation], preprocessing)


def arrays(data: job_pb2.Data, fetch: Callable[[str], Path]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Samples and targets as they stand in the source. Raises DataError if it cannot be read."""
    match data.WhichOneof("source"):
        case "builtin":
            return builtins.load(data.builtin)
        case "npz":
            return npz.load(fetch(data.sha256), data.npz)
        case _:
            return csv.load(fetch(data.sha256), data.csv, data.target)


def _check(field: str, x: NDArray[Any], y: NDArray[Any]) -> None:
    for name, values in (("x", x), ("y", y)):
        if values.dtype.kind not in "biuf":
            raise DataError(f"{field}: {name} holds elements of type {values.dtype}, and must hold real numbers")
        if values.ndim == 0:
            raise DataError(f"{field}: {name} is a single number, and must have the samples on its first axis")
        wrong = np.argwhere(~np.isfinite(values)) if values.dtype.kind == "f" else np.empty((0, 1))
        if len(wrong):
            sample, *feature = (int(i) for i in wrong[0])
            where = f"sample {sample}" + (f", feature {', '.join(map(str, feature))}" if feature else "")
            raise DataError(
                f"{field}: {name} holds NaN or infinite values, {len(wrong)} in all, the first at {where} (counted from 0); "
                "remove or replace them"
            )
    if len(x) != len(y):
        raise DataError(f"{field}: x has {len(x)} samples and y has {len(y)}; they must be as many")
    if x.ndim == 1:
        raise DataError(f"{field}: x has the shape {x.shape}; it must have an axis for the features too, as x.reshape(-1, 1) has")
    if len(x) == 0:
        raise DataError(f"{field}: has no samples")
    if x[0].size == 0:
        raise DataError(f"{field}: x has the shape {x.shape}, and so no features")
