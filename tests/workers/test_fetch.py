"""Getting uploaded data from a server: whole, or said to be damaged."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, JobFailedError
from thalweg.learning.data import DataError
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1 import training_service_pb2_grpc
from thalweg.workers.transport.fetch import fetcher

CONTENT = b"a,b\n1,2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def serving(*contents: bytes | Path) -> Iterator[grpc.Channel]:
    """A channel to a server that answers each download with the next of some contents or paths, and is asked for all of them."""
    left = list(contents)

    def download(*_: object) -> Iterator[pb.DownloadDataResponse]:
        content = left.pop(0)
        if isinstance(content, Path):
            yield pb.DownloadDataResponse(path=str(content))
            return
        for start in range(0, len(content), 3):
            yield pb.DownloadDataResponse(data=content[start : start + 3])

    servicer = type("Servicer", (training_service_pb2_grpc.TrainingServiceServicer,), {"DownloadData": staticmethod(download)})()
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
        server.stop(None).wait()
    assert left == []


def test_what_was_damaged_on_its_way_is_fetched_again() -> None:
    with serving(CONTENT[:-1] + b"!", CONTENT) as channel, fetcher(channel, ()) as fetch:
        path = fetch(SHA256)
        assert path.read_bytes() == CONTENT
    assert not path.exists()


def test_a_copy_has_no_name_that_a_killed_worker_could_leave_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with serving(CONTENT) as channel, fetcher(channel, ()) as fetch:
        path = fetch(SHA256)
        assert list(tmp_path.iterdir()) == []
        # Each reader begins at its start.
        assert [path.read_bytes(), path.read_bytes()] == [CONTENT, CONTENT]


def test_what_stays_damaged_is_said() -> None:
    damaged = b"a,b\n1,3\n"
    with serving(damaged, damaged) as channel, fetcher(channel, ()) as fetch, pytest.raises(DataError) as caught:
        fetch(SHA256)
    has = hashlib.sha256(damaged).hexdigest()
    problem = f"the server's copy of the data is damaged: its SHA-256 is {has}, not {SHA256}"
    remedy = "submit the job again from its files, which uploads the data again"
    assert str(caught.value) == f"data.sha256: {problem}; {remedy}"


def test_a_job_whose_data_is_damaged_on_the_server_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=np.zeros(4))
    with running_server(tmp_path / "server") as server, Client(server.address) as client:
        job = client.submit("xor", {"data.npz": str(tmp_path / "a.npz")})
        upload = tmp_path / "server" / "uploads" / job.spec.data.sha256
        content = bytearray(upload.read_bytes())
        content[len(content) // 2] ^= 1
        upload.write_bytes(content)
        with fleet_of_threads(server), pytest.raises(JobFailedError, match="the server's copy of the data is damaged"):
            job.wait()


def test_a_file_on_this_machine_is_read_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(CONTENT)
    with serving(path) as channel, fetcher(channel, ()) as fetch:
        assert fetch(SHA256) == path


def test_a_file_on_this_machine_that_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(b"changed")
    with (
        serving(path) as channel,
        fetcher(channel, ()) as fetch,
        pytest.raises(DataError, match=r"there has changed since the job was submitted: its SHA-256 is .*; restore the file"),
    ):
        fetch(SHA256)


def test_a_file_that_this_process_may_not_read_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path / "nowhere", CONTENT) as channel, fetcher(channel, ()) as fetch:
        assert fetch(SHA256).read_bytes() == CONTENT
