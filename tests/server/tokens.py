"""A server with tokens for the tests of who may do what: callers by name, and what they are refused with."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc

from tests.end_to_end.cluster import running_server
from thalweg.client import Client
from thalweg.contract.endpoint import authorization
from thalweg.server.process import Server
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

OWN = "the operator's"
_SECONDS = 30


class Caller:
    """One principal's calls of TrainingService."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self.token = token
        self._stub: Any = TrainingServiceStub(channel)

    def __getattr__(self, method: str) -> Any:
        return functools.partial(getattr(self._stub, method), metadata=authorization(self.token), timeout=_SECONDS)

    def listed(self) -> set[str]:
        """The ids of the jobs that it sees."""
        return {job.id for job in self.ListJobs(pb.ListJobsRequest()).jobs}

    def create(self, spec: job_pb2.JobSpec, job_id: str, **request: Any) -> job_pb2.Job:
        """A job of its own."""
        job: job_pb2.Job = self.CreateJob(pb.CreateJobRequest(spec=spec, job_id=job_id, **request)).job
        return job

    def upload(self, content: bytes, sent: bytes | None = None, offset: int = 0) -> str:
        """Uploads a file, or says so and sends something else, and gives its SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        header = pb.UploadHeader(sha256=sha256, size=len(content), offset=offset)
        data = content if sent is None else sent
        requests = [pb.UploadDataRequest(header=header), *([pb.UploadDataRequest(data=data)] if data else [])]
        self.UploadData(iter(requests))
        return sha256

    def has(self, sha256: str) -> bool:
        """Whether the server says that it has a file."""
        whole: bool = self.GetUpload(pb.GetUploadRequest(sha256=sha256)).whole
        return whole

    def download(self, sha256: str) -> bytes:
        """A file that was uploaded."""
        return b"".join(part.data for part in self.DownloadData(pb.DownloadDataRequest(sha256=sha256)))


class Town:
    """A server and its principals: `admin`, and those that were made."""

    def __init__(self, server: Server, channel: grpc.Channel) -> None:
        self.server = server
        self._channel = channel
        self.admin = Caller(channel, OWN)

    def bearer(self, token: str) -> Caller:
        """Whoever has a token."""
        return Caller(self._channel, token)

    def make(self, name: str, role: str, seconds: float = 0) -> Caller:
        """A principal with a token of its own."""
        with Client(self.server.address, OWN) as client:
            return self.bearer(client.access.create(name, role, seconds).secret)

    def revoke(self, name: str) -> None:
        """Makes a principal's token invalid."""
        with Client(self.server.address, OWN) as client:
            client.access.revoke(name)


@contextmanager
def town(folder: Path, **settings: Any) -> Iterator[Town]:
    """A server with a token of its own."""
    with ExitStack() as stack:
        server = stack.enter_context(running_server(folder, token=OWN, **settings))
        yield Town(server, stack.enter_context(grpc.insecure_channel(str(server.address))))
