"""Where samples come from: each source is one function of its module, and one line here."""

from collections.abc import Callable

from thalweg.learning.data.access import Access
from thalweg.learning.data.sources import builtins, columns, npz, python_source
from thalweg.learning.data.sources.columns import Source
from thalweg.learning.data.tables import Table
from thalweg.v1 import job_pb2

# Reads what a job learns from. Raises DataError if it cannot be read.
Reader = Callable[[job_pb2.Data, Access], Source | Table]

SOURCES: dict[str, Reader] = {
    "builtin": builtins.source,
    "npz": npz.source,
    "csv": columns.source,
    "python": python_source.source,
}
