"""A server and workers in this process, without Ray: the protocol and the arithmetic, nothing else."""

import itertools
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.contract.release import capacity
from thalweg.contract.tls import Tls
from thalweg.server.process import Server, ServerConfig
from thalweg.v1 import (
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    job_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from thalweg.v1.parameter_service_pb2 import Place
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
def stub_of(server: Server, tls: Tls | None = None) -> Iterator[training_service_pb2_grpc.TrainingServiceStub]:
    """The server's TrainingService."""
    with Endpoint(server.address, tls=tls).open() as channel:
        yield training_service_pb2_grpc.TrainingServiceStub(channel)


def train(server: Server, spec: job_pb2.JobSpec, workers: int = 1, tls: Tls | None = None) -> job_pb2.Job:
    """Creates a job, works for it with a number of workers, which may run its code, and gives its final record."""
    with stub_of(server, tls) as stub:
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
        threads = [
            threading.Thread(
                target=work, args=(Endpoint(server.address, tls=tls), job.id, f"worker-{i}"), kwargs={"allow_code": True}
            )
            for i in range(workers)
        ]
        for thread in threads:
            thread.start()
        for response in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job.id)):
            if response.event.HasField("state_changed"):
                job = response.event.state_changed.job
        for thread in threads:
            thread.join()
    return job


class ThreadFleet:
    """A fleet whose workers are threads of this process. It starts as many as it is allotted.

    A worker that ends while it is wanted is started again, as a fleet on Ray does. None is ended: each works until its job, or
    the server, ends. With a `node`, the fleet has an id and one node, and starts nothing where the node is to be avoided.
    """

    def __init__(self, server: Address, slots: int, name: str = "threads", node: str = "") -> None:
        self._server = server
        self._wanted: dict[str, int] = {}
        self._workers: dict[str, set[threading.Thread]] = defaultdict(set)
        self._ids = itertools.count(1)
        self._stopping = False
        # Shares, and the workers that ended.
        self._inbox: queue.SimpleQueue[fleet_service_pb2.AttendResponse | tuple[str, threading.Thread]] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[fleet_service_pb2.AttendRequest | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(str(server))
        self._place = Place(fleet=f"{name}-id", node=f"{node}-id", name=node) if node else None
        self._avoided: set[str] = set()
        offer = capacity(name, slots)
        if node:
            offer = capacity(name, slots, fleet=f"{name}-id", nodes=[f"{node}-id"], of_nodes=[(slots, 0)], names=[node])
        self._outbox.put(fleet_service_pb2.AttendRequest(capacity=offer))
        self._call = fleet_service_pb2_grpc.FleetServiceStub(self._channel).Attend(iter(self._outbox.get, None))
        self._threads = [threading.Thread(target=self._attend), threading.Thread(target=self._keep)]

    def __enter__(self) -> "ThreadFleet":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def _attend(self) -> None:
        with suppress(grpc.RpcError):
            for response in self._call:
                self._inbox.put(response)
        self._inbox.put(fleet_service_pb2.AttendResponse())

    def _keep(self) -> None:
        while not self._stopping:
            event = self._inbox.get()
            if isinstance(event, tuple):
                job_id, ended = event
                self._workers[job_id].discard(ended)
            else:
                self._wanted = {allotment.job_id: allotment.workers for allotment in event.allotments}
                self._avoided = {allotment.job_id for allotment in event.allotments if allotment.avoid}
            for job_id, wanted in self._wanted.items():
                if job_id in self._avoided:
                    continue
                while len(self._workers[job_id]) < wanted:
                    self._start(job_id)

    def _start(self, job_id: str) -> None:
        def run() -> None:
            try:
                with suppress(ThalwegError):
                    work(Endpoint(self._server), job_id, f"worker-{next(self._ids)}", place=self._place)
            finally:
                self._inbox.put((job_id, threading.current_thread()))

        worker = threading.Thread(target=run)
        self._workers[job_id].add(worker)
        worker.start()
