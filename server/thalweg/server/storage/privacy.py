"""Whose a data folder is: what a server keeps there its user alone can read, whatever the mode of the folder itself."""

import logging
import os
import stat
from pathlib import Path

_log = logging.getLogger(__name__)
# What a mode lets the group and others do.
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_FOLDERS = ("jobs", "uploads", "deleted")
_DATABASE = "jobs.sqlite"


def keep_private(folder: Path) -> None:
    """Makes the parts of a data folder, or changes their modes, so that this user alone can read them. Raises OSError.

    To be called before anything is kept there: files in these folders and beside the database need no mode of their own then.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & _OTHERS:
        problem = "the data folder %s is open to other users (mode %o); the files in it are not, but chmod 700 %s is safer"
        _log.warning(problem, folder, mode, folder)
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True, mode=0o700)
        _close_to_others(folder / name, 0o700)
    # SQLite gives the files that it makes beside the database the same mode.
    os.close(os.open(folder / _DATABASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for path in folder.glob(f"{_DATABASE}*"):
        _close_to_others(path, 0o600)


def _close_to_others(path: Path, mode: int) -> None:
    """Changes the mode of a file or folder of an earlier release, or of a careless copy, if others may use it."""
    if stat.S_IMODE(path.stat().st_mode) & _OTHERS:
        path.chmod(mode)
