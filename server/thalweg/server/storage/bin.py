"""Files of deleted jobs: put aside by one rename each, so that a deletion happens or does not, and removed later."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)


class Bin:
    """The folder `deleted` in a data folder. What is put into it has a name NUMBER-JOB or upload-SHA256."""

    def __init__(self, folder: Path) -> None:
        self._jobs = folder / "jobs"
        self._folder = folder / "deleted"
        self._folder.mkdir(exist_ok=True)

    def put(self, path: Path, name: str) -> Path | None:
        """Puts a file or a folder aside, and says where. None if it is not there."""
        try:
            return path.rename(self._folder / name)
        except FileNotFoundError:
            return None

    def restore(self, number_of: Callable[[str], int | None]) -> None:
        """Puts back the folders of jobs that a crash kept from being deleted: those of which there is a record."""
        for path in self._folder.iterdir():
            found = re.fullmatch(r"(\d+)-(.+)", path.name)
            if found and number_of(found[2]) == int(found[1]):
                path.rename(self._jobs / found[2])

    def empty(self) -> None:
        """Removes what was put aside."""
        for path in self._folder.iterdir():
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError as error:
                _log.warning("cannot remove %s, a later start will: %s", path, error)
