"""Writes batches that an iterator gives, one after another, to files that a job learns from. One batch is in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike, NDArray

from thalweg.client.arrays import SupportsArrow, numbers, require_pyarrow, writing, wrong
from thalweg.client.parts import Parts

# Samples and targets, or rows of a table: a dictionary of columns, rows that are dictionaries, or a data frame or record batch.
Batch: TypeAlias = (
    tuple[ArrayLike, ArrayLike] | Sequence[ArrayLike] | Mapping[str, object] | Sequence[Mapping[str, object]] | SupportsArrow
)
_END = object()
_PAIR, _ROWS = "a pair of arrays", "a part of a table"


class _Writer(Protocol):
    """Writes batches of one kind."""

    def write(self, batch: object, subject: str) -> None:
        """Writes the next batch. Raises ThalwegError, whose message calls it `subject`, if it is not like the first one."""
        ...

    def finish(self) -> Path | Parts:
        """Completes the files, and returns their paths. Raises ThalwegError if they have no samples."""
        ...


def write_batches(batches: Iterator[Batch], folder: Path) -> Path | Parts:
    """Writes all batches to files in a folder: two files of NumPy, `x` and `y`, of pairs of arrays, or a Parquet file of a table.

    All batches must be of one kind, with the same columns, or shapes but for the number of samples, and the same types. Equal
    samples give equal files, however they are divided, except for tables with wide rows. Raises ThalwegError, which names the
    batch, counted from 0, if it is not like the first one or holds what a job cannot learn from; if there are no samples; if the
    files cannot be written. What the iterator raises is raised as it is.
    """
    writer, first = None, ""
    number = 0
    with ExitStack() as stack:
        # Neither `for` nor `enumerate`, which keep a batch while the next one is made.
        while (batch := next(batches, _END)) is not _END:
            subject = f"batch {number}"
            kind = _kind_of(batch, subject)
            if writer is None:
                writer, first = _writer(kind, folder, stack), kind
            if kind != first:
                raise wrong(f"{subject} is {kind}, but batch 0 is {first}; all batches must be of one kind")
            with writing("the batches", folder):
                writer.write(batch, subject)
            del batch
            number += 1
        if writer is None:
            raise wrong("the iterator gives no batches; one that was used before is empty")
        with writing("the batches", folder):
            return writer.finish()


def _kind_of(batch: object, subject: str) -> str:
    from thalweg.learning.data.frames import is_frame  # noqa: PLC0415 - not all programs give batches

    if isinstance(batch, tuple | list) and len(batch) == 2 and not all(isinstance(each, Mapping) for each in batch):
        return _PAIR
    if is_frame(batch) or hasattr(batch, "__arrow_c_stream__"):
        return _ROWS
    kinds = "a pair of arrays x and y, a dictionary of columns, a data frame or a record batch of Arrow"
    raise wrong(f"{subject} is of type {type(batch).__name__}; a batch is {kinds}")


def _writer(kind: str, folder: Path, stack: ExitStack) -> _Writer:
    if kind == _PAIR:
        return _Pairs(folder, stack)
    require_pyarrow()
    from thalweg.client.row_batches import Rows  # noqa: PLC0415 - imports pyarrow

    return Rows(folder, stack)


class _Pairs:
    """Writes pairs of arrays to the files x.npy and y.npy."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files = {name: _ArrayFile(name, folder / f"{name}.npy", stack) for name in "xy"}

    def write(self, batch: object, subject: str) -> None:
        """Writes the next pair."""
        from thalweg.learning import data as learning_data  # noqa: PLC0415 - not all programs give batches
        from thalweg.learning.batch import INPUT  # noqa: PLC0415

        given = zip(self._files.items(), cast("tuple[ArrayLike, ArrayLike]", batch), strict=True)
        pair = [(file, numbers(f"{subject}: {name}", values)) for (name, file), values in given]
        (_, x), (_, y) = pair
        if x.size or y.size:
            try:
                learning_data.check(subject, {INPUT: x}, y)
            except learning_data.DataError as error:
                raise wrong(str(error)) from None
        for file, values in pair:
            file.check(values, subject)
        for file, values in pair:
            file.append(values)

    def finish(self) -> Parts:
        """Completes the files."""
        for file in self._files.values():
            file.finish()
        return {name: file.path for name, file in self._files.items()}


class _ArrayFile:
    """A file as of `numpy.save` that grows by samples, which are on the first axis."""

    def __init__(self, name: str, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._name = name
        self._stack = stack
        self._file: IO[bytes] | None = None
        self._samples = 0
        # Those of the first batch.
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float64)

    def check(self, values: NDArray[Any], subject: str) -> None:
        """Raises ThalwegError if an array cannot follow those before."""
        if values.ndim == 0:
            raise wrong(f"{subject}: {self._name} is a single number; its first axis must be the samples")
        if self._file is None:
            return
        subject = f"{subject}: {self._name}"
        if values.dtype != self._dtype:
            raise wrong(f"{subject} holds {values.dtype}, but in batch 0 {self._dtype}; convert all batches to one type")
        if values.shape[1:] != self._shape:
            theirs, ours = values.shape[1:], self._shape
            raise wrong(f"{subject} has samples of shape {theirs}, but in batch 0 of shape {ours}; all must have one shape")

    def append(self, values: NDArray[Any]) -> None:
        """Writes the next samples."""
        if self._file is None:
            # Without a buffer, so that closing it writes nothing.
            self._file = self._stack.enter_context(self.path.open("wb", buffering=0))
            self._shape, self._dtype = values.shape[1:], values.dtype
            self._write_header(self._file)
        rest = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while rest:
            rest = rest[self._file.write(rest) :]
        self._samples += len(values)

    def finish(self) -> None:
        """Completes the file. Raises ThalwegError if it has no samples."""
        if self._file is None or not self._samples:
            raise wrong("no batch has any samples")
        self._file.seek(0)
        self._write_header(self._file)

    def _write_header(self, file: IO[bytes]) -> None:
        # NumPy leaves room in it for a larger number of samples.
        shape = (self._samples, *self._shape)
        npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape})
