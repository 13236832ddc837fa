"""A server and workers in this process, without Ray: the protocol and the arithmetic, nothing else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from thalweg.contract.channel import Address
from thalweg.server.service import Server, ServerConfig
from thalweg.v1 import job_pb2, training_service_pb2, training_service_pb2_grpc
from thalweg.workers.worker import work


@contextmanager
def running_server(data: Path, **settings: object) -> Iterator[Server]:
    """A server on a free port of loopback."""
    server = Server(ServerConfig(address=Address("127.0.0.1", 0), data=data, **settings))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def stub_of(server: Server) -> Iterator[training_service_pb2_grpc.TrainingServiceStub]:
    """The server's TrainingService."""
    with grpc.insecure_channel(str(server.address)) as channel:
        yield training_service_pb2_grpc.TrainingServiceStub(channel)


def train(server: Server, spec: job_pb2.JobSpec, workers: int = 1) -> job_pb2.Job:
    """Creates a job, works for it with so many workers, and gives it as it ends."""
    with stub_of(server) as stub:
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
        threads = [threading.Thread(target=work, args=(server.address, None, job.id, f"worker-{i}")) for i in range(workers)]
        for thread in threads:
            thread.start()
        for response in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job.id)):
            if response.event.HasField("state_changed"):
                job = response.event.state_changed.job
        for thread in threads:
            thread.join()
    return job
