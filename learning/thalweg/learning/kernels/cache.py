"""Compiled kernels on disk: each is a file of its own, whose content is checked before it is used."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from thalweg.contract.folders import cache_folder, make_private

# Each has some 50 kB, and a release of numba or of Thalweg leaves those of the one before.
_MAX_FILES = 128
_DIGEST_BYTES = hashlib.sha256().digest_size


def folder() -> Path | None:
    """This user's folder of kernels; None if the user has no home. THALWEG_KERNEL_CACHE, if set, is another one."""
    return cache_folder("kernels", "THALWEG_KERNEL_CACHE")


def load(key: str) -> bytes | None:
    """What was saved under a key; None if it is not there, is damaged, or another user could have changed it."""
    where = folder()
    if where is None:
        return None
    try:
        make_private(where)
        data = (where / key).read_bytes()
    except OSError:
        return None
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return content if digest == hashlib.sha256(content).digest() else None


def save(key: str, content: bytes) -> None:
    """Keeps content under a key, for other processes. Raises OSError if that is not possible."""
    where = folder()
    if where is None:
        raise OSError("there is no home, and no XDG_CACHE_HOME")
    make_private(where)
    handle, name = tempfile.mkstemp(dir=where)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        Path(name).replace(where / key)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _tidy(where)


def _tidy(where: Path) -> None:
    """Removes the oldest files beyond the limit."""
    with suppress(OSError):
        files = sorted(where.iterdir(), key=lambda path: path.lstat().st_mtime)
        for path in files[:-_MAX_FILES]:
            path.unlink()
