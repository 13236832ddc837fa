"""Starting and stopping: a server that cannot start says why in clear words, and leaves no files or processes."""

import errno
import fcntl
import os
import socket
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.peer import DEADLINE
from tests.server.test_training_service import make_spec
from thalweg.client.certificates import Authority
from thalweg.contract.endpoint import Address
from thalweg.contract.tls import ServerTls
from thalweg.server.driving import jobs as jobs_module
from thalweg.server.process import FolderInUseError, Server, ServerConfig
from thalweg.server.services.hosted import ServerStartError
from thalweg.server.storage import journal as journal_module
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2, training_service_pb2

FREE = Address("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("thalweg")]
    assert left == []


def refuses(folder: Path, address: Address = FREE, **settings: Any) -> str:
    with pytest.raises(ServerStartError) as caught:
        Server(ServerConfig(address, folder, **settings)).start()
    return str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "a-name"])
def test_any_address_but_loopback_needs_a_token(tmp_path: Path, host: str) -> None:
    told = refuses(tmp_path / "data", Address(host, 0))
    assert all(words in told for words in ("needs a token", "THALWEG_TOKEN", "TLS", "thalweg certs init", "--trust-network"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("settings", [{"trust_network": True}, {"token": "t", "trust_network": True}, {"token": "t"}])
def test_any_address_will_do_with_a_token_and_tls_or_on_a_trusted_network(tmp_path: Path, settings: dict[str, Any]) -> None:
    if "trust_network" not in settings:
        made = Authority.new(tmp_path / "tls").add("server", ["server"])
        settings = settings | {"tls": ServerTls(made.cert, made.key)}
    server = Server(ServerConfig(Address("0.0.0.0", 0), tmp_path / "data", **settings))
    assert server.start().port > 0
    server.stop()


def test_a_token_does_not_protect_where_others_can_read_it(tmp_path: Path) -> None:
    told = refuses(tmp_path / "data", Address("0.0.0.0", 0), token="t")
    assert "so the server needs TLS (--tls-cert and --tls-key; thalweg certs init DIR --server HOST makes the files)" in told
    assert "needs a token" not in told


def test_an_empty_token_is_none(tmp_path: Path) -> None:
    assert "needs a token" in refuses(tmp_path, Address("0.0.0.0", 0), token="")


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        told = refuses(tmp_path, Address("127.0.0.1", listening.getsockname()[1]))
    assert "the port is in use" in told
    assert "--address" in told
    with running_server(tmp_path) as server:
        assert server.address.port > 0


def test_an_address_of_another_machine_is_told(tmp_path: Path) -> None:
    assert "cannot listen at 192.0.2.1:0" in refuses(tmp_path, Address("192.0.2.1", 0), trust_network=True)


def test_a_folder_in_use_is_told(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        with pytest.raises(FolderInUseError, match="in use by another server; choose another with --data"):
            Server(ServerConfig(FREE, tmp_path)).start()
        with stub_of(server) as stub:
            assert stub.GetServerInfo(training_service_pb2.GetServerInfoRequest()).version
    with running_server(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ServerStartError, match=r"does not support file locks \(No locks available\); choose another") as caught:
        Server(ServerConfig(FREE, tmp_path)).start()
    assert not isinstance(caught.value, FolderInUseError)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot use the data folder" in refuses(tmp_path / "file" / "data")
    assert "cannot use the data folder" in refuses(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refuses(tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["jobs.sqlite", "uploads"])
def test_a_damaged_folder_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is no database and no folder " * 100)
    assert "cannot use the data folder" in refuses(tmp_path)


def test_a_record_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with running_server(tmp_path), sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.execute("INSERT INTO jobs (id, job) VALUES ('a', x'ff')")
    database.close()
    assert "cannot use the data folder" in refuses(tmp_path)


def test_a_folder_that_takes_no_address_is_told(tmp_path: Path) -> None:
    (tmp_path / "address").mkdir()
    assert "cannot write to the data folder" in refuses(tmp_path)
    (tmp_path / "address").rmdir()
    with running_server(tmp_path):
        pass


def test_only_its_user_may_look_into_the_folder(tmp_path: Path) -> None:
    with running_server(tmp_path / "data"):
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_what_is_kept_in_a_folder_that_others_may_enter_is_private(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0o022)
    try:
        # As an earlier release left it.
        for name in ("jobs", "uploads"):
            (tmp_path / name).mkdir(mode=0o755)
        (tmp_path / "jobs.sqlite").touch(0o644)
        tmp_path.chmod(0o755)
        with running_server(tmp_path) as server, stub_of(server) as stub:
            job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec())).job
            stub.CancelJob(training_service_pb2.CancelJobRequest(job_id=job.id))
            # What is left out says nothing of jobs.
            kept = [path for path in tmp_path.iterdir() if path.name not in ("address", "reserve")]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept}
    finally:
        os.umask(before)
    assert {"jobs", "uploads", "jobs.sqlite", "jobs.sqlite-wal", "lock"} <= modes.keys()
    assert {name for name, mode in modes.items() if mode & 0o077} == set()
    assert f"{tmp_path} is open to other users (mode 755)" in caplog.text


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The addresses of this machine that its name `localhost` stands for."""
    ips = ("127.0.0.1", "127.0.0.2")
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in (*ips, ips[0], "192.0.2.1")]
    known = socket.getaddrinfo
    names = {"localhost": infos}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: names.get(host) or known(host, *args, **more))
    return ips


def test_a_name_is_listened_at_with_all_its_addresses(tmp_path: Path, two_addresses: tuple[str, str]) -> None:
    server = Server(ServerConfig(Address("localhost", 0), tmp_path))
    address = server.start()
    try:
        assert address.host == "localhost"
        assert server.listening == tuple(Address(ip, address.port) for ip in two_addresses)
        for where in server.listening:
            socket.create_connection(where).close()
    finally:
        server.stop()


def test_a_name_one_of_whose_addresses_is_in_use_is_refused(tmp_path: Path, two_addresses: tuple[str, str]) -> None:
    with socket.create_server((two_addresses[1], 0)) as listening:
        port = listening.getsockname()[1]
        told = refuses(tmp_path, Address("localhost", port))
        assert f"cannot listen at 127.0.0.2:{port}, which localhost stands for" in told


def test_the_address_is_written_down_while_the_server_runs(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        assert (tmp_path / "address").read_text() == f"{server.address}\n"
    assert not (tmp_path / "address").exists()


def test_a_server_that_never_ran_can_be_stopped(tmp_path: Path) -> None:
    server = Server(ServerConfig(FREE, tmp_path))
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_jobs_that_have_not_ended_stay_unfinished_when_the_server_stops(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec()))
    storage = DataFolder(tmp_path)
    job = storage.job("job-1")
    storage.close()
    assert job
    assert job.state == job_pb2.JOB_STATE_QUEUED


def test_a_server_stops_though_its_disk_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "DISK_SECONDS", 0.05)
    monkeypatch.setattr(jobs_module, "DISK_SECONDS", 0.05)
    failed = threading.Event()

    def fail(_: DataFolder, events: Iterable[Any]) -> None:
        failed.set()
        raise sqlite3.OperationalError("database or disk is full")

    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec()))
        with monkeypatch.context() as patch:
            patch.setattr(DataFolder, "record", fail)
            cancelling = stub.CancelJob.future(training_service_pb2.CancelJobRequest(job_id="job-1"))
            assert failed.wait(DEADLINE)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            stopping.join(DEADLINE)
            assert not stopping.is_alive()
        assert cancelling.exception()
    with running_server(tmp_path) as server, stub_of(server) as stub:
        job = stub.GetJob(training_service_pb2.GetJobRequest(job_id="job-1")).job
        assert job.state == job_pb2.JOB_STATE_QUEUED
        assert "restarted" in job.status


def test_a_server_does_not_start_though_unfinished_jobs_cannot_be_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec()))

    def fail(_: DataFolder, events: Iterable[Any]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "DISK_SECONDS", 0.05)
        patch.setattr(jobs_module, "DISK_SECONDS", 0.05)
        patch.setattr(DataFolder, "record", fail)
        assert "is the disk full?" in refuses(tmp_path)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert "restarted" in stub.GetJob(training_service_pb2.GetJobRequest(job_id="job-1")).job.status
