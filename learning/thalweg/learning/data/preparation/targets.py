"""How targets are prepared: in the form that a loss takes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.checks import check_prepared
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.rows import Mapped, Rows, is_late, row_blocks

# Labels for more classes are a mistake: a column of amounts was taken for labels.
_MAX_CLASSES = 100_000


def as_targets(field: str, y: Rows, loss: str, one_hot: bool, dtype: np.dtype[np.floating], *, kept: bool = False) -> Rows:
    """Targets in the form that a loss takes: labels, int64 of shape (samples), or numbers of the given dtype.

    Softmax cross-entropy takes labels, or, of more than one column, probabilities. One-hot vectors have as many elements as the
    largest label plus one. Targets that are `kept`, for models that are code, have any shape, and integers become int64; so do
    real numbers that softmax cross-entropy takes for labels, as those of a table. All targets are checked here, and each is
    converted when it is taken. Raises DataError if the targets have no such form.
    """
    if one_hot:
        labels, largest = _labels(field, y, "data.one_hot = true")
        return Mapped(labels, lambda rows: _one_hot(rows, largest + 1, dtype), (largest + 1,), dtype)
    if kept and y.dtype.kind in "biu":
        return Mapped(y, lambda rows: rows.astype(np.int64), y.shape[1:], np.dtype(np.int64))
    # Targets that are read late are checked then.
    if loss != "softmax_cross_entropy" or (kept and (is_late(y) or y.shape[1:] not in ((), (1,)))):
        return _cast(field, y, dtype)
    if y.shape[1:] in ((), (1,)):
        return _labels(field, y, "model.loss = softmax_cross_entropy")[0]
    for block in row_blocks(y):
        rows = y[block]
        outside = (rows < 0) | (rows > 1)
        if np.any(outside):
            sample = block.start + int(np.argwhere(outside)[0][0])
            raise DataError(
                f"{field}: y has the shape {y.shape}, which model.loss = softmax_cross_entropy treats as probabilities, but "
                f"holds numbers below 0 or above 1, the first at sample {sample} (counted from 0)"
            )
    return _cast(field, y, dtype)


def _labels(field: str, y: Rows, wanted_by: str) -> tuple[Rows, int]:
    """Labels, int64 of shape (samples), and the largest of them."""
    if y.shape[1:] not in ((), (1,)):
        raise DataError(f"{field}: y has the shape {y.shape}, but {wanted_by} needs one label for each sample")
    flat = Mapped(y, lambda rows: rows.reshape(-1), (), y.dtype)
    largest = 0
    for block in row_blocks(flat):
        rows = flat[block]
        wrong = np.flatnonzero((rows < 0) | (rows != np.floor(rows)) | (rows >= _MAX_CLASSES))
        if len(wrong):
            raise DataError(
                f"{field}: y has {rows[wrong[0]]:.15g} at sample {block.start + wrong[0]} (counted from 0), but {wanted_by} "
                f"needs labels: whole numbers from 0 to at most {_MAX_CLASSES - 1}"
            )
        largest = max(largest, int(rows.max()))
    return Mapped(flat, lambda rows: rows.astype(np.int64), (), np.dtype(np.int64)), largest


def _one_hot(labels: NDArray[Any], classes: int, dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    vectors = np.zeros((len(labels), classes), dtype)
    vectors[np.arange(len(labels)), labels] = 1
    return vectors


def _cast(field: str, y: Rows, dtype: np.dtype[np.floating]) -> Rows:
    def converted(rows: NDArray[Any]) -> NDArray[np.floating]:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(rows, dtype)

    cast = Mapped(y, converted, y.shape[1:], dtype)
    check_prepared(f"{field}: y", cast)
    return cast
