"""One's own arrays, from a NumPy archive."""

import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from thalweg.workers.data.errors import DataError

# What a damaged, encrypted or foreign archive makes NumPy raise.
_UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

# NumPy parses an array's header with `ast`, and in Python 3.11 two threads that do so can break each other: the depth of the
# parser's recursion is kept once for the process (https://github.com/python/cpython/issues/106905).
_one_reader = threading.Lock()


@contextmanager
def opened(file: Path | IO[bytes]) -> Iterator[Any]:
    """A NumPy archive, read by one thread of the process at a time. Nothing is unpickled; raises what numpy.load raises."""
    with _one_reader, np.load(file, allow_pickle=False) as archive:
        yield archive


def load(path: Path, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The arrays `x` and `y`. Raises DataError, which calls the file `name`, if it has them not. Nothing is unpickled."""
    if path.stat().st_size == 0:
        raise DataError(f"data.npz: {name!r} is empty")
    if not zipfile.is_zipfile(path):
        raise DataError(f"data.npz: {name!r} is no NumPy archive; write one with numpy.savez({name!r}, x=x, y=y)")
    try:
        with opened(path) as archive:
            missing = [key for key in ("x", "y") if key not in archive.files]
            if missing:
                has = ", ".join(archive.files) or "nothing"
                raise DataError(f"data.npz: {name!r} has no array {' and no array '.join(missing)}; it has {has}")
            return _array(archive, "x", name), _array(archive, "y", name)
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"data.npz: {name!r} has arrays that do not fit in this worker's memory") from None
    except _UNREADABLE as error:
        raise DataError(f"data.npz: {name!r} cannot be read as a NumPy archive: {error}") from error


def _array(archive: Any, key: str, name: str) -> NDArray[Any]:
    try:
        array = archive[key]
    except ValueError as error:
        if "Object arrays" in str(error):
            raise DataError(f"data.npz: {name!r} holds Python objects as {key}, and must hold numbers") from error
        raise
    # A member without NumPy's header comes as bytes.
    if not isinstance(array, np.ndarray):
        raise DataError(f"data.npz: {name!r} holds a {key} that is no array")
    return array
