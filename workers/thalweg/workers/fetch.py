"""Gets uploaded data from the server."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from thalweg.contract.channel import authorization
from thalweg.v1 import training_service_pb2, training_service_pb2_grpc
from thalweg.workers.data.errors import DataError


@contextmanager
def fetcher(channel: grpc.Channel, token: str | None) -> Iterator[Callable[[str], Path]]:
    """A function that gets the upload with a SHA-256 as a file, which exists as long as the context.

    The function raises DataError if what the server has under that SHA-256 is damaged.
    """
    stub = training_service_pb2_grpc.TrainingServiceStub(channel)
    with tempfile.TemporaryDirectory(prefix="thalweg-data-") as folder:

        def fetch(sha256: str) -> Path:
            path = Path(folder) / sha256
            # What was damaged on its way is not so again.
            for _ in range(2):
                digest = hashlib.sha256()
                request = training_service_pb2.DownloadDataRequest(sha256=sha256)
                with path.open("wb") as file:
                    for part in stub.DownloadData(request, metadata=authorization(token)):
                        digest.update(part.data)
                        file.write(part.data)
                if digest.hexdigest() == sha256:
                    return path
            problem = f"the server's copy of the data is damaged: its SHA-256 is {digest.hexdigest()} in place of {sha256}"
            raise DataError(f"data.sha256: {problem}; submit the job again from its files, which uploads the data again")

        yield fetch
