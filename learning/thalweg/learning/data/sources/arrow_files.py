"""Files that pyarrow reads: opened, recognized, and put together as one table. Imports pyarrow."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from thalweg.contract.resources import descriptors_left
from thalweg.learning.data.errors import DataError, MemoryLackError
from thalweg.learning.data.files import OpenFile
from thalweg.learning.data.sources.arrow_cells import column_of
from thalweg.learning.data.sources.files import SourceFile
from thalweg.learning.data.sources.grouped import GroupedTable, Part
from thalweg.learning.data.sources.partitions import Partitions, partitions
from thalweg.learning.errors import NodeError

# Descriptors of an open file, one of which a mapping has.
_DESCRIPTORS = 2


def grouped(field: str, name: str, files: Sequence[SourceFile], opened: Callable[[SourceFile], Part]) -> GroupedTable:
    """The table in files, one after another, each of which `opened` opens. `field` and `name` are for messages.

    Raises DataError if a file is damaged, or their columns differ, and NodeError if there are too many for this process.
    """
    if not files:
        raise DataError(f"{field}: {name!r} has no files")
    if _DESCRIPTORS * len(files) > (left := descriptors_left()):
        problem = f"there are {len(files):,} files, and this process can open {left // _DESCRIPTORS:,} more"
        raise NodeError(f"{field}: {problem}; raise the limit of open files (ulimit -n), or write fewer, larger files")
    parts = [opened(file) for file in files]
    several = len(files) > 1 or "/" in files[0].name
    columns = partitions([file.name for file in files], field) if several else Partitions((), ((),))
    return GroupedTable(field, name, parts, columns)


def ends_of(file: OpenFile, size: int) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file, `size` of them each; fewer of a smaller file. Raises DataError if it is empty."""
    if not file.size:
        raise DataError(f"{file.subject} is empty")
    start, end = (bytearray(min(size, file.size)) for _ in range(2))
    file.read(0, memoryview(start))
    file.read(file.size - len(end), memoryview(end))
    return bytes(start), bytes(end)


def checked(schema: pa.Schema) -> pa.Schema:
    """A schema, all of whose names and types can be read. Raises UnicodeDecodeError, which is ValueError."""
    for name, kind in zip(schema.names, schema.types, strict=True):
        column_of(name, kind)
    return schema


@contextmanager
def reading(file: OpenFile, what: str, smaller: str) -> Iterator[None]:
    """Turns errors of pyarrow within the context into DataError. An error of a file that has changed says so.

    `what` says which part of the file is read, or in which format; `smaller` says what to do if that does not fit in memory.
    """
    try:
        yield
        file.check()
    except DataError:
        raise
    except MemoryError:
        raise MemoryLackError(f"{file.subject} does not fit in this machine's memory; {smaller}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, and so the node's
        file.check()
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file.subject} cannot be read {what}: {reason}; it is damaged, write or copy it again") from error
