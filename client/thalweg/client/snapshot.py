"""Read access to a data folder that cannot be written, such as one on a read-only file system, another user's, or a backup."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thalweg.client.errors import LocalError
from thalweg.contract.backups import INCOMPLETE, MANIFEST, is_backup

# Files of running servers, and SQLite's index, which it makes again.
_LEFT_OUT = ("lock", "address", "token", "server-token", "runs", "jobs.sqlite-shm", MANIFEST, INCOMPLETE)


def is_read_only(folder: Path) -> bool:
    """Whether there is a data folder that a server cannot change because it cannot be written, or must not: it is a backup."""
    needed = (folder, *folder.glob("jobs.sqlite"), *folder.glob("lock"))
    return folder.is_dir() and (is_backup(folder) or not all(os.access(path, os.W_OK) for path in needed))


@contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    """A folder for a server with the jobs of a read-only one: a copy of its database, and links to its other files.

    It exists until the context exits. Raises LocalError if it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="thalweg-look-") as name:
        copy = Path(name)
        try:
            for path in folder.iterdir():
                if path.name in _LEFT_OUT:
                    continue
                if path.is_dir():
                    (copy / path.name).mkdir()
                    for entry in path.iterdir():
                        (copy / path.name / entry.name).symlink_to(entry.absolute())
                else:
                    # Its mode is not copied, which may be read-only.
                    shutil.copyfile(path, copy / path.name)
        except OSError as error:
            raise LocalError(f"cannot read the data folder {folder}: {error.strerror}") from error
        yield copy
