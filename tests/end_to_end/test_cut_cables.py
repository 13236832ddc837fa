"""A connection on which nothing travels any more, though neither end closed it: both ends notice, and give it up."""

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE
from tests.end_to_end.refusals import refusal
from tests.server.test_training_service import make_spec
from thalweg.contract import endpoint
from thalweg.contract.endpoint import Address, Endpoint, connection_options
from thalweg.contract.errors import ThalwegError
from thalweg.contract.release import capacity
from thalweg.server.process import Server
from thalweg.server.services import hosted
from thalweg.v1 import fleet_service_pb2, fleet_service_pb2_grpc
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers import worker

_QUICK = connection_options(keepalive_ms=200)


class Cable:
    """A TCP proxy that can be cut: it then forwards nothing more, either way, and closes nothing.

    `drop` cuts the connections that there are, and ends them at the client alone. Later ones work.
    """

    def __init__(self, server: Address) -> None:
        self._server = server
        self._cut = threading.Event()
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._near: list[socket.socket] = []
        self._dropped: set[socket.socket] = set()
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._server)
            self._sockets += [near, far]
            self._near.append(near)
            for pair in ((near, far), (far, near)):
                thread = threading.Thread(target=self._forward, args=pair)
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.sent += 1
                if self._carries(source):
                    target.sendall(data)
            if self._carries(source):
                target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def _carries(self, source: socket.socket) -> bool:
        return not self._cut.is_set() and source not in self._dropped

    def cut(self) -> None:
        self._cut.set()

    def drop(self) -> None:
        dropped, self._near = self._near, []
        self._dropped.update(dropped)
        for near in dropped:
            near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


@contextmanager
def cable(server: Address) -> Iterator[Cable]:
    laid = Cable(server)
    try:
        yield laid
    finally:
        laid.close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(hosted, "OPTIONS", _QUICK)
    monkeypatch.setattr(endpoint, "OPTIONS", _QUICK)
    with running_server(tmp_path) as server:
        yield server


@pytest.fixture
def laid(server: Server) -> Iterator[Cable]:
    with cable(server.address) as laid:
        yield laid


def test_a_client_that_watches(server: Server, laid: Cable) -> None:
    with stub_of(server) as stub, grpc.insecure_channel(str(laid.address), options=_QUICK) as opened:
        job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec())).job
        events = TrainingServiceStub(opened).WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=DEADLINE)
        next(events)
        laid.cut()
        assert refusal(lambda: events).code is grpc.StatusCode.UNAVAILABLE


def test_one_that_watches_for_long_is_not_taken_for_an_attack(server: Server, laid: Cable) -> None:
    with stub_of(server) as stub, grpc.insecure_channel(str(laid.address), options=_QUICK) as opened:
        job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec())).job
        events = TrainingServiceStub(opened).WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=DEADLINE)
        next(events)
        before = laid.sent
        wait_for(lambda: laid.sent > before + 40)
        stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
        assert [event.event for event in events][-1].HasField("state_changed")


def test_a_fleet_that_attends(server: Server, laid: Cable) -> None:
    with stub_of(server) as stub, grpc.insecure_channel(str(laid.address), options=_QUICK) as opened:
        requests: queue.SimpleQueue[fleet_service_pb2.AttendRequest | None] = queue.SimpleQueue()
        requests.put(fleet_service_pb2.AttendRequest(capacity=capacity("far", 3)))
        attending = fleet_service_pb2_grpc.FleetServiceStub(opened).Attend(iter(requests.get, None), timeout=DEADLINE)
        wait_for(lambda: stub.GetServerInfo(pb.GetServerInfoRequest()).fleets)
        laid.cut()
        assert refusal(lambda: attending).code is grpc.StatusCode.UNAVAILABLE
        wait_for(lambda: not stub.GetServerInfo(pb.GetServerInfoRequest()).fleets)
        requests.put(None)


def test_a_worker_that_works(server: Server, laid: Cable, barrier: Barrier) -> None:
    with stub_of(server) as stub:
        barrier.hold(1)
        job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec())).job
        lost: list[ThalwegError] = []

        def work() -> None:
            try:
                worker.work(Endpoint(laid.address), job.id, "far")
            except ThalwegError as error:
                lost.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        events = stub.WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=DEADLINE)
        next(event for event in events if event.event.HasField("steps_taken"))
        laid.cut()
        next(event for event in events if event.event.HasField("workers_changed") and not event.event.workers_changed.names)
        barrier.release()
        thread.join()
        assert [error.reason for error in lost] == ["UNREACHABLE"]
        stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
