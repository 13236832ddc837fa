"""Samples and targets in two of NumPy's files, which are read where they lie."""

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.columns import Source
from thalweg.learning.data.sources.files import source_files
from thalweg.learning.data.sources.npz import load_array
from thalweg.v1 import job_pb2

_FIELD = "data.npy"


def source(data: job_pb2.Data, access: Access) -> Source:
    """The arrays `x` and `y` of a job's files. Raises DataError if they cannot be read."""
    paths = {file.name: file.path for file in source_files(access, _FIELD, "", data.sha256)}
    if paths.keys() != {"x", "y"}:
        raise DataError(f"{_FIELD}: the upload is not a manifest of the files x and y; submit the job again from its files")
    x, y = (load_array(paths[name], f"{_FIELD}.{name}", given) for name, given in (("x", data.npy.x), ("y", data.npy.y)))
    return Source(x, y)
