"""One's own arrays, from a NumPy archive."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.workers.data.errors import DataError


def load(path: Path, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The arrays `x` and `y`. Raises DataError, which calls the file `name`, if it has them not. Nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"data.npz: {name} is one array; save two with numpy.savez({name!r}, x=x, y=y)")
            missing = [key for key in ("x", "y") if key not in archive]
            if missing:
                has = ", ".join(archive.files) or "nothing"
                raise DataError(f"data.npz: {name} has no array {' and no array '.join(missing)}; it has {has}")
            return archive["x"], archive["y"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data.npz: {name} cannot be read as a NumPy archive of numbers: {error}") from error
