"""Where the code of jobs lies on a node: one folder for each archive, named by its SHA-256, for reading only."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from thalweg.contract import folders
from thalweg.workers.node_cache import NodeCache

_TEMPORARY = "thalweg-code-"
_FOLDER = re.compile(rf".*/(?:[0-9a-f]{{64}}|{_TEMPORARY}[^/]*)/")
# What is kept of folders that nobody uses.
MAX_KEPT_FOLDERS = 32
MAX_KEPT_BYTES = 4 << 30


def cache_folder() -> Path | None:
    """This user's folder of code; None if the user has no home. THALWEG_CODE_CACHE, if set, is another one."""
    return folders.cache_folder("code", "THALWEG_CODE_CACHE")


def below_folder(file: str) -> str:
    """The path of a file as the code's author knows it, also after the folder, of any worker, is gone."""
    return _FOLDER.sub("", file, count=1)


def kept(name: str, fill: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> AbstractContextManager[Path]:
    """The folder of this name, which stays as it is within the context, as `NodeCache.kept` says."""
    return NodeCache(cache_folder(), _TEMPORARY, MAX_KEPT_BYTES, MAX_KEPT_FOLDERS).kept(name, fill, is_whole)
