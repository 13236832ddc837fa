"""Writes samples and targets that are arrays, or a table, of this process to a file that a job learns from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.client.errors import LocalError
from thalweg.client.extras import needs
from thalweg.contract.errors import Violation, invalid


class SupportsArrow(Protocol):
    """A data frame, as of pandas, Polars or Arrow: what gives its columns by Arrow's interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


# The files' names in the job's specification.
NAME = "arrays.npz"
TABLE_NAME = "table.parquet"
# Rows of a group of a table's file, which is read at once.
_GROUP = 1 << 16
# Samples and targets, or a table: a data frame, a dictionary of columns by their names, or rows that are dictionaries.
Arrays: TypeAlias = tuple[ArrayLike, ArrayLike] | Mapping[str, object] | Sequence[Mapping[str, object]] | SupportsArrow


def write_arrays(data: Arrays, folder: Path) -> Path:
    """Writes samples `x` and targets `y`, both with the samples on their first axis, to a file in a folder. Returns its path.

    A table is written in place of them as a Parquet file. Equal arrays give equal files. Raises ThalwegError if they are not two
    arrays of numbers, of as many samples, nor a table, or cannot be written.
    """
    # Not all programs give arrays, and the others need no mathematics.
    from thalweg.learning import data as learning_data  # noqa: PLC0415
    from thalweg.learning.batch import INPUT  # noqa: PLC0415
    from thalweg.learning.data.frames import is_frame  # noqa: PLC0415

    if not isinstance(data, tuple) and is_frame(data):
        return _write_table(data, folder / TABLE_NAME)
    if not isinstance(data, tuple) or len(data) != 2:
        raise invalid(
            Violation("data", f"must be a pair of arrays: the samples x and their targets y, or a table{_instead(data)}")
        )
    x, y = (_numbers(name, cast("ArrayLike", values)) for name, values in zip("xy", data, strict=True))
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


def _write_table(data: object, path: Path) -> Path:
    with needs("data", "pyarrow is"):
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    try:
        if isinstance(data, Mapping):
            table = pa.table({str(name): cells for name, cells in data.items()})
        else:
            table = pa.Table.from_pylist(list(data)) if isinstance(data, Sequence) else pa.table(data)
        pq.write_table(table, path, row_group_size=_GROUP)
    except OSError as error:
        raise LocalError(f"cannot write the table to {path.parent}: {error.strerror}") from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise invalid(Violation("data", f"the table cannot be written as Parquet: {reason}; convert the column")) from error
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
