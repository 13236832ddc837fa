"""Folders of a user: caches, and those that are this user's alone."""

import os
import stat
from contextlib import suppress
from pathlib import Path


def cache_folder(name: str, variable: str) -> Path | None:
    """This user's cache of that name; None if the user has no home. The environment's `variable`, if set, is another folder."""
    for chosen_by, below in ((variable, ""), ("XDG_CACHE_HOME", f"thalweg/{name}")):
        # The standard says to pass over a relative path, which would mean another folder in each current one.
        if (chosen := Path(os.environ.get(chosen_by, ""))).is_absolute():
            return chosen / below
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "thalweg" / name
    return None


def make_private(folder: Path) -> None:
    """Makes a folder, if it is not there. Raises OSError if it is not this user's alone to write."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{folder} is not this user's alone")
