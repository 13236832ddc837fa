"""Gets uploaded data from the server."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import grpc

from thalweg.contract.endpoint import Metadata
from thalweg.learning.data.errors import DataError
from thalweg.v1 import training_service_pb2, training_service_pb2_grpc


@contextmanager
def fetcher(channel: grpc.Channel, metadata: Metadata, field: str = "data.sha256") -> Iterator[Callable[[str], Path]]:
    """A function that gets the upload with a SHA-256 as a file, which exists as long as the context lasts.

    If the upload is on this machine, it is the file itself, which must not be changed. Otherwise it is a copy without a name:
    nothing is left of it, even if this process is killed. The function raises DataError, with `field` first, if the file has
    another SHA-256.
    """
    stub = training_service_pb2_grpc.TrainingServiceStub(channel)
    with ExitStack() as until_the_end:

        def fetch(sha256: str) -> Path:
            file = until_the_end.enter_context(tempfile.TemporaryFile())
            try:
                return _received(stub, sha256, file, metadata, field, in_place=True)
            except OSError:
                # This process may not read it in place.
                return _received(stub, sha256, file, metadata, field, in_place=False)

        yield fetch


def _received(
    stub: training_service_pb2_grpc.TrainingServiceStub,
    sha256: str,
    file: IO[bytes],
    metadata: Metadata,
    field: str,
    *,
    in_place: bool,
) -> Path:
    # Data that was damaged on its way arrives the second time.
    for _ in range(2):
        digest = hashlib.sha256()
        request = training_service_pb2.DownloadDataRequest(sha256=sha256, in_place=in_place)
        file.seek(0)
        file.truncate()
        for part in stub.DownloadData(request, metadata=metadata):
            if part.path:
                return _checked(Path(part.path), sha256, field)
            digest.update(part.data)
            file.write(part.data)
        file.flush()
        if digest.hexdigest() == sha256:
            return Path(f"/proc/self/fd/{file.fileno()}")
    problem = f"the server's copy of the data is damaged: its SHA-256 is {digest.hexdigest()}, not {sha256}"
    raise DataError(f"{field}: {problem}; submit the job again from its files, which uploads the data again")


def _checked(path: Path, sha256: str, field: str) -> Path:
    """A file on this machine, if it is still what was submitted. Raises OSError if it cannot be read, and DataError."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(
            f"{field}: {path} has changed since the job was submitted: its SHA-256 is {found}, not {sha256}; "
            "restore the file, or submit the job again"
        )
    return path
