"""Writes samples and targets that are arrays, or a table, of this process to a file that a job learns from."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.client.errors import LocalError
from thalweg.client.extras import needs
from thalweg.contract.errors import ThalwegError, Violation, invalid

if TYPE_CHECKING:
    import pyarrow as pa


class SupportsArrow(Protocol):
    """A data frame, as of pandas, Polars or Arrow: what gives its columns by Arrow's interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


# The files' names in the job's specification.
NAME = "arrays.npz"
TABLE_NAME = "table.parquet"
# Rows of a group of a table's file, which is read at once.
GROUP_ROWS = 1 << 16
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
        raise wrong(f"must be a pair of arrays: the samples x and their targets y, or a table{_instead(data)}")
    x, y = (numbers(name, cast("ArrayLike", values)) for name, values in zip("xy", data, strict=True))
    try:
        learning_data.check("data", {INPUT: x}, y)
    except learning_data.DataError as error:
        raise wrong(str(error).removeprefix("data: ")) from None
    path = folder / NAME
    with writing("the arrays", folder):
        np.savez(path, x=x, y=y)
    return path


def _write_table(data: object, path: Path) -> Path:
    require_pyarrow()
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    table = arrow_table(data)
    with writing("the table", path.parent), as_parquet(""):
        pq.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


def require_pyarrow() -> None:
    """Raises ThalwegError if pyarrow is not installed."""
    with needs("data", "pyarrow is"):
        import pyarrow as pa  # noqa: F401, PLC0415 - an extra


def arrow_table(data: object, prefix: str = "") -> "pa.Table":
    """A table of Arrow with the cells of a data frame, a dictionary of columns, or rows that are dictionaries.

    Raises ThalwegError, whose problem begins with `prefix`, if cells are of several types.
    """
    import pyarrow as pa  # noqa: PLC0415 - an extra

    with as_parquet(prefix):
        if isinstance(data, Mapping):
            return pa.table({str(name): cells for name, cells in data.items()})
        if isinstance(data, Sequence):
            return pa.Table.from_pylist(list(data))
        # The index of pandas is no column.
        return pa.Table.from_pandas(data, preserve_index=False) if type(data).__module__.startswith("pandas.") else pa.table(data)


@contextmanager
def as_parquet(prefix: str) -> Iterator[None]:
    """Turns errors about cells within the context into ThalwegError."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    try:
        yield
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise wrong(f"{prefix}the table cannot be written as Parquet: {reason}; convert the column") from error


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turns the system's errors within the context into ThalwegError, which says what cannot be written to a temporary folder."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise LocalError(f"cannot write {what} to {folder}: {reason}; TMPDIR can name another place") from error


def wrong(problem: str) -> ThalwegError:
    """The error of data that cannot be learned from."""
    return invalid(Violation("data", problem))


def _instead(data: object) -> str:
    """What to give in place of a data set or a loader, such as PyTorch's."""
    from thalweg.learning.data.frames import is_frame  # noqa: PLC0415 - not all programs give arrays

    kind = type(data).__name__
    if isinstance(data, list | tuple) and data and (is_frame(data[0]) or (isinstance(data[0], tuple) and len(data[0]) == 2)):
        return f"; of a {kind} of batches, which are such pairs or parts of a table, give iter(...) of it"
    if hasattr(data, "tensors"):
        return f"; of a {kind} give data=dataset.tensors, if it has two"
    if hasattr(data, "dataset"):
        read = (
            "is read as an iterator: give iter(loader)"
            if hasattr(data, "__iter__")
            else "is not read: give the arrays that it reads"
        )
        return f"; a {kind} {read}, or name a function that makes its data set as data.python"
    if hasattr(data, "__getitem__") and not isinstance(data, (list, tuple, dict)):
        return f"; of a {kind} give its arrays, or name a function that makes it as data.python"
    return ""


def numbers(name: str, values: ArrayLike) -> NDArray[Any]:
    """An array of real numbers. Raises ThalwegError, whose problem begins with `name`, if values are something else."""
    try:
        array = np.asarray(values)
    except Exception as error:
        # Tensors of other libraries raise errors of theirs.
        raise wrong(f"{name} is not an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise wrong(f"{name} holds elements of type {array.dtype}; it must hold real numbers")
    return array
