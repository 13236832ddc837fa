"""Gets uploaded data from the server."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from thalweg.contract.channel import authorization
from thalweg.v1 import training_service_pb2, training_service_pb2_grpc


@contextmanager
def fetcher(channel: grpc.Channel, token: str | None) -> Iterator[Callable[[str], Path]]:
    """A function that gets the upload with a SHA-256 as a file, which exists as long as the context."""
    stub = training_service_pb2_grpc.TrainingServiceStub(channel)
    with tempfile.TemporaryDirectory(prefix="thalweg-data-") as folder:

        def fetch(sha256: str) -> Path:
            path = Path(folder) / sha256
            digest = hashlib.sha256()
            request = training_service_pb2.DownloadDataRequest(sha256=sha256)
            with path.open("wb") as file:
                for part in stub.DownloadData(request, metadata=authorization(token)):
                    digest.update(part.data)
                    file.write(part.data)
            if digest.hexdigest() != sha256:
                raise OSError(f"the data {sha256} arrived damaged")
            return path

        yield fetch
