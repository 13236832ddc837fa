"""Where samples come from: each source is one function of its module, and one line here."""

from collections.abc import Callable
from pathlib import Path

from thalweg.learning.data import builtins, columns, npz, python_source
from thalweg.learning.data.columns import Source
from thalweg.v1 import job_pb2

# Gives the file that was uploaded under a SHA-256.
Fetch = Callable[[str], Path]
# Reads what a job learns from. Raises DataError if it cannot be read.
Reader = Callable[[job_pb2.Data, Fetch], Source]

SOURCES: dict[str, Reader] = {
    "builtin": builtins.source,
    "npz": npz.source,
    "csv": columns.source,
    "python": python_source.source,
}
