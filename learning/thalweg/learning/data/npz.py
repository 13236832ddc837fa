"""NumPy's files: one array (.npy), or an archive of named ones (.npz). Nothing in them is unpickled."""

import errno
import math
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from thalweg.learning.data.columns import Source, listed
from thalweg.learning.data.errors import DataError, MemoryLackError
from thalweg.learning.data.memory import check_memory
from thalweg.v1 import job_pb2

# What a damaged, encrypted or foreign file makes its reader raise.
_UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
# How much is read at once: an archive is unpacked piece by piece.
_BLOCK = 1 << 20

# NumPy parses an array's header with `ast`, and in Python 3.11 two threads that do so can break each other: the depth of the
# parser's recursion is kept once for the process (https://github.com/python/cpython/issues/106905).
_one_reader = threading.Lock()


def source(data: job_pb2.Data, fetch: Callable[[str], Path]) -> Source:
    """The arrays `x` and `y` of a job's archive. Raises DataError if it cannot be read."""
    return Source(*load(fetch(data.sha256), "data.npz", data.npz))


def load(path: Path, field: str, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The arrays `x` and `y` of an archive. Raises DataError, whose message begins with `field` and calls the file `name`."""
    with _opened(path, field, name) as archive:
        missing = [key for key in ("x", "y") if key not in archive]
        if missing:
            has = listed(archive.names) or "nothing"
            raise DataError(f"{field}: {name!r} has no array {' and no array '.join(missing)}; it has {has}")
        return archive.array("x"), archive.array("y")


def load_samples(path: Path, field: str, name: str) -> NDArray[Any]:
    """The array of a .npy file, or the array `x`, or the only one, of an archive. Raises DataError as `load` does."""
    with path.open("rb") as file:
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            file.seek(0)
            with _told(field, name, "a NumPy array"):
                return _read(file, f"{field}: {name!r}", "an array", path.stat().st_size)
    with _opened(path, field, name) as archive:
        if "x" not in archive and len(archive.names) != 1:
            raise DataError(f"{field}: {name!r} has no array x; it has {listed(archive.names) or 'nothing'}")
        return archive.array("x" if "x" in archive else archive.names[0])


def is_numpys(path: Path) -> bool:
    """Whether a file is one of NumPy's, by how it begins. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX or zipfile.is_zipfile(file)


@contextmanager
def _opened(path: Path, field: str, name: str) -> "Iterator[_Archive]":
    if path.stat().st_size == 0:
        raise DataError(f"{field}: {name!r} is empty")
    # Not the path: of a file that cannot be opened it would say that it is no archive.
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{field}: {name!r} is not a NumPy archive; write one with numpy.savez({name!r}, x=x, y=y)")
    with _told(field, name, "a NumPy archive"), zipfile.ZipFile(path) as archive:
        yield _Archive(archive, f"{field}: {name!r}")


@contextmanager
def _told(field: str, name: str, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise MemoryLackError(f"{field}: {name!r} does not fit in this machine's memory") from None
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the system's, and so the node's
        # NumPy adds advice on its own functions, on further lines.
        problem, *_ = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{field}: {name!r} cannot be read as {what}: {problem}") from error


class _Archive:
    """An open archive. `subject` is how messages begin."""

    def __init__(self, archive: zipfile.ZipFile, subject: str) -> None:
        self._archive = archive
        self._subject = subject
        self._members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """The names of its arrays."""
        return list(self._members)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def array(self, key: str) -> NDArray[Any]:
        """An array by its name."""
        member = self._members[key]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{self._subject} uses an unsupported compression method; write it with numpy.savez_compressed")
        with self._archive.open(member) as file:
            return _read(file, self._subject, key, member.file_size)


def _read(file: IO[bytes], subject: str, key: str, size: int) -> NDArray[Any]:
    """The array in an open .npy file of `size` bytes, which have to be those that its header declares. It is read piece by piece.

    Raises DataError if it does not hold numbers, or more than memory has room for, and what NumPy raises if it is damaged.
    """
    with _one_reader:
        version = npy.read_magic(file)
        if version == (1, 0):
            shape, by_columns, dtype = npy.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, by_columns, dtype = npy.read_array_header_2_0(file)
        else:
            raise DataError(f"{subject} holds {key} in a format that NumPy does not use for numbers")
    if dtype.hasobject:
        raise DataError(f"{subject} holds Python objects in {key}; it must hold numbers")
    if dtype.kind not in "biuf":
        raise DataError(f"{subject} holds elements of type {dtype} in {key}; it must hold real numbers")
    if any(length < 0 for length in shape):
        raise DataError(f"{subject} declares the invalid shape {shape} for {key}")
    count = math.prod(shape)
    needed = count * dtype.itemsize
    if size < needed:
        raise DataError(f"{subject} is truncated: {key} needs {needed:,} bytes but has {size:,}")
    # What is small when packed may be larger than any machine's memory.
    check_memory(f"{subject}: {key} of shape {shape} and type {dtype}", needed)
    flat = np.empty(count, dtype)
    room = flat.view(np.uint8).data
    done = 0
    while done < needed:
        block = file.read(min(_BLOCK, needed - done))
        if not block:
            raise DataError(f"{subject} is truncated: {key} needs {needed:,} bytes but has {done:,}")
        room[done : done + len(block)] = block
        done += len(block)
    return flat.reshape(shape[::-1]).T if by_columns else flat.reshape(shape)
