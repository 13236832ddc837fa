"""Where samples come from: each source is one function of its module, and one line here."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.access import Access
from thalweg.learning.data.sources import builtins, columns, npy, npz, python_source
from thalweg.learning.data.sources.columns import Source
from thalweg.learning.data.sources.extras import require_pillow, require_pyarrow
from thalweg.learning.data.sources.files import SourceFile
from thalweg.learning.data.tables import Table
from thalweg.v1 import job_pb2

# The sources whose files pyarrow reads.
COLUMNAR = ("parquet", "arrow")
# Reads what a job learns from: arrays, or a table. Raises DataError if it cannot be read, and NodeError if a package is missing.
Reader = Callable[[job_pb2.Data, Access], Source | Table]


def _parquet(data: job_pb2.Data, access: Access) -> Table:
    require_pyarrow("data.parquet")
    from thalweg.learning.data.sources import parquet  # noqa: PLC0415 - imports pyarrow

    return parquet.source(data, access)


def _arrow(data: job_pb2.Data, access: Access) -> Table:
    require_pyarrow("data.arrow")
    from thalweg.learning.data.sources import arrow  # noqa: PLC0415 - imports pyarrow

    return arrow.source(data, access)


def _images(data: job_pb2.Data, access: Access) -> Source:
    require_pillow("data.images")
    from thalweg.learning.data.sources import images  # noqa: PLC0415 - imports Pillow

    return images.source(data, access)


def is_columnar(path: Path) -> bool:
    """Whether a file is a Parquet file or one of Arrow's, by its beginning."""
    with path.open("rb") as file:
        return file.read(6).startswith((b"PAR1", b"ARROW1"))


def columnar_rows(path: Path, field: str) -> Table:
    """The table in one Parquet file, or in one of Arrow's; messages begin with `field`."""
    with path.open("rb") as file:
        kind = "arrow" if file.read(6) == b"ARROW1" else "parquet"
    return columnar_table(kind, [SourceFile(path.name, path)], path.name, field)


def columnar_table(kind: str, files: Sequence[SourceFile], name: str, field: str) -> Table:
    """The table in files of one of COLUMNAR. `field` and `name` are for messages."""
    require_pyarrow(field)
    from thalweg.learning.data.sources import arrow, parquet  # noqa: PLC0415 - import pyarrow

    return arrow.table(files, name, field) if kind == "arrow" else parquet.table(files, name, field)


def decoded_images(files: Sequence[SourceFile], shape: Sequence[int], field: str) -> NDArray[np.uint8]:
    """Images to predict from, as `images.decoded` does. Raises NodeError if Pillow is not installed."""
    require_pillow(field)
    from thalweg.learning.data.sources import images  # noqa: PLC0415 - imports Pillow

    return images.decoded(files, shape, field)


SOURCES: dict[str, Reader] = {
    "builtin": builtins.source,
    "npz": npz.source,
    "csv": columns.source,
    "json_lines": columns.json_lines,
    "python": python_source.source,
    "parquet": _parquet,
    "arrow": _arrow,
    "npy": npy.source,
    "images": _images,
}
