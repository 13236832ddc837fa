"""What must hold of any samples and targets, those to train on and those to predict from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError


def check_numbers(subject: str, values: NDArray[Any]) -> None:
    """Raises DataError, whose message begins with `subject`, if an array does not hold finite real numbers, samples first."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"{subject} holds elements of type {values.dtype}; it must hold real numbers")
    if values.ndim == 0:
        raise DataError(f"{subject} is a single number; its first axis must be the samples")
    if values.dtype.kind == "f":
        _check_finite(f"{subject} holds NaN or infinite values", values, "remove or replace them")


def check_prepared(subject: str, values: NDArray[np.floating]) -> None:
    """Raises DataError, whose message begins with `subject`, if numbers that were finite no longer are."""
    _check_finite(f"{subject} holds numbers that are too large for {values.dtype}", values, "scale them, or remove them")


def _check_finite(problem: str, values: NDArray[np.floating], remedy: str) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    wrong = np.argwhere(~finite)
    sample, *feature = (int(index) for index in wrong[0])
    where = f"sample {sample}" + (f", feature {', '.join(map(str, feature))}" if feature else "")
    raise DataError(f"{problem}, {len(wrong)} in all, the first at {where} (counted from 0); {remedy}")
