"""What the client's tests share: a fleet of threads, finished jobs, and what a command printed."""

import json
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from thalweg.client import Client, Job
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.contract.release import capacity
from thalweg.server.process import Server
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1 import fleet_service_pb2_grpc
from thalweg.workers.worker import work

# Nothing listens there.
NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True)
class Cluster:
    """A server with a fleet, and two jobs that ended there: a logic gate, and digits with standardized data and validation."""

    server: Server
    client: Client
    gate: Job
    digits: Job

    @property
    def address(self) -> str:
        """Where the server listens."""
        return str(self.server.address)


class Printed(NamedTuple):
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)


def start_worker(server: Address, job_id: str, token: str | None = None, *, allow_code: bool = False) -> threading.Thread:
    """A worker that is a thread, until the job ends or the server goes away."""

    def run() -> None:
        with suppress(ThalwegError):
            work(Endpoint(server, token), job_id, "a-thread", allow_code=allow_code)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextmanager
def fleet_of_threads(
    server: Server | Client, token: str | None = None, slots: int = 2, *, allow_code: bool = False, name: str = "threads"
) -> Iterator[None]:
    """A fleet that gives each job the workers that the server allots."""
    outbox: queue.SimpleQueue[pb.AttendRequest | None] = queue.SimpleQueue()
    outbox.put(pb.AttendRequest(capacity=capacity(name, slots, allow_code=allow_code)))
    with grpc.insecure_channel(str(server.address)) as channel:
        attending = fleet_service_pb2_grpc.FleetServiceStub(channel).Attend
        call = attending(iter(outbox.get, None), metadata=Endpoint(server.address, token).metadata)

        def attend() -> None:
            started: Counter[str] = Counter()
            with suppress(grpc.RpcError):
                for response in call:
                    allotted = {allotment.job_id for allotment in response.allotments}
                    for ended in started.keys() - allotted:
                        # Its workers have gone; if it is resumed, it gets others.
                        del started[ended]
                    for allotment in response.allotments:
                        while started[allotment.job_id] < allotment.workers:
                            started[allotment.job_id] += 1
                            start_worker(server.address, allotment.job_id, token, allow_code=allow_code)

        thread = threading.Thread(target=attend)
        thread.start()
        try:
            yield
        finally:
            outbox.put(None)
            call.cancel()
            thread.join()


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())
