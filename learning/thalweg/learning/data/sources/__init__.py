"""Where samples come from: each source is one function of its module, and one line here."""

from collections.abc import Callable

from thalweg.learning.data.access import Access
from thalweg.learning.data.sources import builtins, columns, npz, python_source
from thalweg.learning.data.sources.columns import Source
from thalweg.learning.data.sources.extras import require_pyarrow
from thalweg.learning.data.tables import Table
from thalweg.v1 import job_pb2

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


SOURCES: dict[str, Reader] = {
    "builtin": builtins.source,
    "npz": npz.source,
    "csv": columns.source,
    "python": python_source.source,
    "parquet": _parquet,
    "arrow": _arrow,
}
