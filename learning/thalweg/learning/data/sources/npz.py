"""NumPy's files: one array (.npy), or an archive of named ones (.npz). Nothing in them is unpickled."""

import errno
import math
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from thalweg.learning.data.access import Access, Fill
from thalweg.learning.data.errors import DataError, MemoryLackError, listed
from thalweg.learning.data.memory import check_memory, is_held
from thalweg.learning.data.rows import FileRows, Rows
from thalweg.learning.data.sources.columns import Source
from thalweg.v1 import job_pb2

# What readers raise for a damaged, encrypted or foreign file.
_UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
# Gives the file that was made for an array's name, or makes it.
Made = Callable[[str, Fill], Path]
# Of unpacked arrays: another one, and they are unpacked again.
_FORMAT = 1
# How much is read at once: an archive is unpacked piece by piece.
_BLOCK = 1 << 20
# The local header of a member of a zip archive. Its last two numbers are the lengths of the name and of the extra field after it.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")

# NumPy parses an array's header with `ast`, and in Python 3.11 two threads that do so can break each other: the depth of the
# parser's recursion is kept once for the process (https://github.com/python/cpython/issues/106905).
_one_reader = threading.Lock()


def source(data: job_pb2.Data, access: Access) -> Source:
    """The arrays `x` and `y` of a job's archive. Raises DataError if it cannot be read."""

    def made(key: str, fill: Fill) -> Path:
        return access.made(f"npz-{_FORMAT}-{data.sha256}-{key}", fill)

    x, y = load_rows(access.upload(data.sha256), "data.npz", data.npz, ("x", "y"), made)
    return Source(x, y)


def load(path: Path, field: str, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The arrays `x` and `y` of an archive. Raises DataError, whose message begins with `field` and calls the file `name`."""
    with _opened(path, field, name) as archive:
        archive.require(("x", "y"))
        return archive.array("x"), archive.array("y")


def load_rows(path: Path, field: str, name: str, keys: Sequence[str], made: Made | None = None) -> list[Rows]:
    """Arrays of an archive by their names. An array that is stored as it is in memory stays in the file.

    That is so for C-ordered arrays in an archive of `numpy.savez`. Others are read; but C-ordered ones that are larger than what
    is held in memory are unpacked into files, and stay there, if `made` is given. Raises DataError as `load` does.
    """
    with _opened(path, field, name) as archive:
        archive.require(keys)
        return [archive.rows(key, made) for key in keys]


def load_array(path: Path, field: str, name: str) -> Rows:
    """The array of a .npy file, which stays in the file if it is C-ordered. Raises DataError as `load` does."""
    subject = f"{field}: {name!r}"
    with path.open("rb") as file:
        if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            raise DataError(f"{subject} is not an array of NumPy's; write one with numpy.save")
        file.seek(0)
        with _data_errors(field, name, "a NumPy array"):
            header = _header(file, subject, "an array", path.stat().st_size)
            if header.by_columns:
                return _read(file, subject, "an array", header)
            return FileRows(file.fileno(), file.tell(), header.shape, header.dtype, subject)


def load_samples(path: Path, field: str, name: str) -> NDArray[Any]:
    """The array of a .npy file, or the array `x`, or the only one, of an archive. Raises DataError as `load` does."""
    with path.open("rb") as file:
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            file.seek(0)
            with _data_errors(field, name, "a NumPy array"):
                subject = f"{field}: {name!r}"
                return _read(file, subject, "an array", _header(file, subject, "an array", path.stat().st_size))
    with _opened(path, field, name) as archive:
        if "x" not in archive and len(archive.names) != 1:
            raise DataError(f"{field}: {name!r} has no array x; it has {listed(archive.names) or 'nothing'}")
        return archive.array("x" if "x" in archive else archive.names[0])


def is_numpys(path: Path) -> bool:
    """Whether a file is in one of NumPy's formats, by its first bytes. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX or zipfile.is_zipfile(file)


@contextmanager
def _opened(path: Path, field: str, name: str) -> "Iterator[_Archive]":
    if path.stat().st_size == 0:
        raise DataError(f"{field}: {name!r} is empty")
    # Given a path, `is_zipfile` would answer False for a file that cannot be opened.
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{field}: {name!r} is not a NumPy archive; write one with numpy.savez({name!r}, x=x, y=y)")
    with _data_errors(field, name, "a NumPy archive"), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        yield _Archive(archive, file.fileno(), f"{field}: {name!r}")


@contextmanager
def _data_errors(field: str, name: str, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise MemoryLackError(f"{field}: {name!r} does not fit in this machine's memory") from None
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the system's, and so the node's
        # Further lines are NumPy's advice about its own functions.
        problem, *_ = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{field}: {name!r} cannot be read as {what}: {problem}") from error


class _Archive:
    """An open archive, and the descriptor of its file. `subject` is how messages begin."""

    def __init__(self, archive: zipfile.ZipFile, descriptor: int, subject: str) -> None:
        self._archive = archive
        self._descriptor = descriptor
        self._subject = subject
        self._members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """The names of its arrays."""
        return list(self._members)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def require(self, keys: Sequence[str]) -> None:
        """Raises DataError if it lacks an array."""
        missing = [key for key in keys if key not in self]
        if missing:
            has = listed(self.names) or "nothing"
            raise DataError(f"{self._subject} has no array {' and no array '.join(missing)}; it has {has}")

    def array(self, key: str) -> NDArray[Any]:
        """An array by its name."""
        with self._member(key) as (file, header):
            return _read(file, self._subject, key, header)

    def rows(self, key: str, made: Made | None) -> Rows:
        """An array by its name, which stays in the file, or in one that is `made`, if it is stored row by row."""
        member = self._members[key]
        with self._member(key) as (file, header):
            if header.by_columns:
                return _read(file, self._subject, key, header)
            if member.compress_type != zipfile.ZIP_STORED:
                if made is None or is_held(header.needed):
                    return _read(file, self._subject, key, header)
                unpacked = made(key, lambda path: self._unpack(key, header, path))
                with unpacked.open("rb") as found:
                    return FileRows(found.fileno(), 0, header.shape, header.dtype, self._subject)
            offset = self._data_offset(member) + file.tell()
            # To the end, where its checksum is compared.
            while file.read(_BLOCK):
                pass
            return FileRows(self._descriptor, offset, header.shape, header.dtype, self._subject)

    def _unpack(self, key: str, header: "_Header", path: Path) -> None:
        """Writes the elements of an array to a file."""
        with self._member(key) as (file, _), path.open("wb") as out:
            # To the end, where its checksum is compared; a member is as long as it says.
            while block := file.read(_BLOCK):
                out.write(block)
            if (size := out.tell()) < header.needed:
                raise DataError(f"{self._subject} is truncated: {key} needs {header.needed:,} bytes but has {size:,}")

    @contextmanager
    def _member(self, key: str) -> "Iterator[tuple[IO[bytes], _Header]]":
        member = self._members[key]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{self._subject} uses an unsupported compression method; write it with numpy.savez_compressed")
        with self._archive.open(member) as file:
            yield file, _header(file, self._subject, key, member.file_size)

    def _data_offset(self, member: zipfile.ZipInfo) -> int:
        """Where the bytes of a stored member begin. Only its local header has the lengths of what is before them."""
        local = os.pread(self._descriptor, _LOCAL_HEADER.size, member.header_offset)
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(local)
        return member.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)


class _Header(NamedTuple):
    """The header of an array's file."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]
    # The bytes of the elements.
    needed: int


def _header(file: IO[bytes], subject: str, key: str, size: int) -> _Header:
    """Reads the header of an open .npy file of `size` bytes, which must be at least as many as it declares.

    Raises DataError if the array does not hold numbers, and what NumPy raises if the header is damaged.
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
    needed = math.prod(shape) * dtype.itemsize
    if size < needed:
        raise DataError(f"{subject} is truncated: {key} needs {needed:,} bytes but has {size:,}")
    return _Header(shape, by_columns, dtype, needed)


def _read(file: IO[bytes], subject: str, key: str, header: _Header) -> NDArray[Any]:
    """The array in an open .npy file, after its header. It is read piece by piece.

    Raises DataError if memory has no room for it, or the file ends too early.
    """
    shape, by_columns, dtype, needed = header
    # A small compressed file may hold an array that is larger than any machine's memory.
    check_memory(f"{subject}: {key} of shape {shape} and type {dtype}", needed)
    flat = np.empty(math.prod(shape), dtype)
    room = flat.view(np.uint8).data
    done = 0
    while done < needed:
        block = file.read(min(_BLOCK, needed - done))
        if not block:
            raise DataError(f"{subject} is truncated: {key} needs {needed:,} bytes but has {done:,}")
        room[done : done + len(block)] = block
        done += len(block)
    return flat.reshape(shape[::-1]).T if by_columns else flat.reshape(shape)
