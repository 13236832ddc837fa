"""Writes samples and targets that are arrays of this process to a file that a job learns from."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.client.errors import LocalError
from thalweg.contract.errors import Violation, invalid

# The file's name in the job's specification.
NAME = "arrays.npz"
Arrays = tuple[ArrayLike, ArrayLike]


def write_arrays(data: Arrays, folder: Path) -> Path:
    """Writes samples `x` and targets `y`, both with the samples on their first axis, to a file in a folder. Returns its path.

    Equal arrays give equal files. Raises ThalwegError if they are not two arrays of numbers, of as many samples, or cannot be
    written.
    """
    # Not all programs give arrays, and the others need no mathematics.
    from thalweg.learning import data as learning_data  # noqa: PLC0415
    from thalweg.learning.batch import INPUT  # noqa: PLC0415

    if not isinstance(data, tuple) or len(data) != 2:
        raise invalid(Violation("data", f"must be a pair of arrays: the samples x and their targets y{_instead(data)}"))
    x, y = (_numbers(name, values) for name, values in zip("xy", data, strict=True))
    try:
        learning_data.check("data", {INPUT: x}, y)
    except learning_data.DataError as error:
        raise invalid(Violation("data", str(error).removeprefix("data: "))) from None
    path = folder / NAME
    try:
        np.savez(path, x=x, y=y)
    except OSError as error:
        raise LocalError(f"cannot write the arrays to {folder}: {error.strerror}") from error
    return path


def _instead(data: object) -> str:
    """What to give in place of a data set or a loader, such as PyTorch's."""
    kind = type(data).__name__
    if hasattr(data, "tensors"):
        return f"; of a {kind} give data=dataset.tensors, if it has two"
    if hasattr(data, "dataset"):
        return f"; a {kind} is not read: give the arrays that it reads, or name a function that makes its data set as data.python"
    if hasattr(data, "__getitem__") and not isinstance(data, (list, tuple, dict)):
        return f"; of a {kind} give its arrays, or name a function that makes it as data.python"
    return ""


def _numbers(name: str, values: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except Exception as error:
        # Tensors of other libraries raise errors of theirs.
        raise invalid(Violation("data", f"{name} is not an array: {error}")) from error
    if array.dtype.kind not in "biuf":
        raise invalid(Violation("data", f"{name} holds elements of type {array.dtype}; it must hold real numbers"))
    return array
