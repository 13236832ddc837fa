"""Folders that are one user's alone."""

import os
import stat
from pathlib import Path


def make_private(folder: Path) -> None:
    """Makes a folder, if it is not there. Raises OSError if it is not this user's alone to write."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{folder} is not this user's alone")
