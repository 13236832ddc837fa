"""Watching: from any number on, through restarts of the server, and by several at once."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.client.helpers import Cluster, start_worker
from tests.end_to_end.barrier import Barrier
from thalweg.client import Client, Event, StateChanged, StepsTaken, ThalwegError
from thalweg.client.connection import Connection
from thalweg.contract.endpoint import Address
from thalweg.contract.states import state_name
from thalweg.server.process import Server, ServerConfig


def test_a_watch_goes_on_behind_any_number(cluster: Cluster) -> None:
    events = list(cluster.digits.watch())
    for after in (0, 1, len(events) // 2, len(events) - 1, len(events), len(events) + 5):
        assert list(cluster.digits.watch(after)) == events[after:]


def test_a_watch_ends_with_the_job(server: Server, client: Client, barrier: Barrier) -> None:
    barrier.hold(3)
    job = client.submit("xor")
    worker = start_worker(server.address, job.id)
    states = []
    for event in job.watch():
        if isinstance(event, StepsTaken):
            job.cancel()
        elif isinstance(event, StateChanged):
            states.append(event.state)
    barrier.release()
    worker.join()
    assert states[0] == "QUEUED"
    assert states[-1] == "CANCELLED"
    assert "RUNNING" in states


def test_a_watch_that_is_left_leaves_the_job_as_it_is(client: Client) -> None:
    job = client.submit("xor")
    watch = job.watch()
    first = next(watch)
    watch.close()  # type: ignore[attr-defined]
    assert job.state == "QUEUED"
    assert next(job.watch()) == first


def test_a_watch_and_a_wait_survive_a_restart_of_the_server(tmp_path: Path, barrier: Barrier) -> None:
    barrier.hold(3)
    first = Server(ServerConfig(Address("127.0.0.1", 0), tmp_path / "server"))
    address = first.start()
    events: list[Event] = []
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with Client(address) as client:
        job = client.submit("xor")
        start_worker(address, job.id)

        def watch() -> None:
            for event in client.job(job.id).watch():
                events.append(event)
                told.put(event)

        watcher = threading.Thread(target=watch)
        watcher.start()
        waiter = threading.Thread(target=job.wait)
        waiter.start()
        while not isinstance(told.get(), StepsTaken):
            pass
        first.stop()
        second = Server(ServerConfig(address, tmp_path / "server"))
        second.start()
        try:
            while not (isinstance(event := told.get(), StateChanged) and "restarted" in event.status):
                pass
            barrier.hold(6)
            start_worker(address, job.id)
            while not isinstance(told.get(), StepsTaken):
                pass
            client.job(job.id).cancel()
            watcher.join()
            waiter.join()
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert events == client.job(job.id).history()
            assert job.last_result().state == "CANCELLED"
        finally:
            second.stop()


def test_a_watch_has_the_ended_jobs_record_though_the_server_restarts_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [Server(ServerConfig(Address("127.0.0.1", 0), tmp_path / "server"))]
    address = servers[0].start()
    call_once = Connection.call_once

    def restart_first(*arguments: Any) -> Any:
        monkeypatch.undo()
        servers[0].stop()
        try:
            return call_once(*arguments)
        finally:
            servers.append(Server(ServerConfig(address, tmp_path / "server")))
            servers[1].start()

    with Client(address) as client:
        job = client.submit("xor")
        client.job(job.id).cancel()
        monkeypatch.setattr(Connection, "call_once", restart_first)
        events = list(job.watch())
        assert len(servers) == 2
        assert isinstance(events[-1], StateChanged)
        assert events[-1].state == state_name(job.message.state) == "CANCELLED"
    servers[1].stop()


def test_a_watch_of_a_server_that_stays_away_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.client.job._RECONNECT_SECONDS", 0.3)
    server = Server(ServerConfig(Address("127.0.0.1", 0), tmp_path / "server"))
    server.start()
    with Client(server.address) as client:
        watch = client.submit("xor").watch()
        next(watch)
        server.stop()
        with pytest.raises(ThalwegError) as caught:
            list(watch)
    assert caught.value.reason == "UNREACHABLE"


def test_a_watch_says_that_the_server_cannot_be_reached(tmp_path: Path) -> None:
    first = Server(ServerConfig(Address("127.0.0.1", 0), tmp_path / "server"))
    address = first.start()
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    with Client(address) as client:
        job = client.submit("xor")
        watch = job.watch(0, said.put)
        next(watch)
        watcher = threading.Thread(target=lambda: list(watch))
        watcher.start()
        first.stop()
        assert said.get() == f"the server at {address} cannot be reached; trying again"
        second = Server(ServerConfig(address, tmp_path / "server"))
        second.start()
        try:
            while "cannot be reached" in (back := said.get()):
                pass
            assert "restarted" in back
            client.job(job.id).cancel()
            watcher.join()
        finally:
            second.stop()
