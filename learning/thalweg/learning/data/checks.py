"""Checks of samples and targets, for training and for predictions."""

import numpy as np

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.rows import Rows, is_late, row_blocks


def check_numbers(subject: str, values: Rows) -> None:
    """Raises DataError, whose message begins with `subject`, if an array does not hold finite real numbers, samples first."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"{subject} holds elements of type {values.dtype}; it must hold real numbers")
    if len(values.shape) == 0:
        raise DataError(f"{subject} is a single number; its first axis must be the samples")
    _check_finite(f"{subject} holds NaN or infinite values", values, "remove or replace them")


def check_prepared(subject: str, values: Rows) -> None:
    """Raises DataError, whose message begins with `subject`, if numbers that were finite no longer are."""
    _check_finite(f"{subject} holds numbers that are too large for {values.dtype}", values, "scale them, or remove them")


def _check_finite(problem: str, values: Rows, remedy: str) -> None:
    if values.dtype.kind != "f" or is_late(values):
        return
    count, where = 0, ""
    for block in row_blocks(values):
        finite = np.isfinite(values[block])
        if finite.all():
            continue
        wrong = np.argwhere(~finite)
        count += len(wrong)
        if not where:
            sample, *feature = (int(index) for index in wrong[0])
            where = f"sample {block.start + sample}" + (f", feature {', '.join(map(str, feature))}" if feature else "")
    if count:
        raise DataError(f"{problem}, {count} in all, the first at {where} (counted from 0); {remedy}")
