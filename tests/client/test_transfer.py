"""Transfers: uploads that jobs learn from, and downloads that are checked."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.client.helpers import Cluster, names_in
from tests.end_to_end.cluster import running_server
from tests.end_to_end.command import wait_for
from tests.end_to_end.test_cut_cables import cable
from thalweg.client import Client, Job, LocalError, ThalwegError, load_job, transfer
from thalweg.contract.endpoint import CHUNK_BYTES
from thalweg.server.services import uploads
from thalweg.v1 import job_pb2, training_service_pb2_grpc
from thalweg.v1 import training_service_pb2 as pb

LAYOUT = job_pb2.Layout(tensors=[job_pb2.Tensor(name="0.bias", shape=[4])], dtype="float32")
VALUES = np.array([1, 2, 3, 4], "float32").tobytes()
RIGHT = hashlib.sha256(VALUES).hexdigest()


@contextmanager
def serving(**methods: Callable[..., Any]) -> Iterator[Job]:
    """A job of a server that answers as a test says."""
    servicer = type("Servicer", (training_service_pb2_grpc.TrainingServiceServicer,), {})()
    for name, method in {"GetJob": lambda *_: pb.GetJobResponse(job=job_pb2.Job(id="a")), **methods}.items():
        setattr(servicer, name, method)
    server = grpc.server(ThreadPoolExecutor())
    training_service_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            yield client.job("a")
    finally:
        server.stop(None)


def parameters(sha256: str, *parts: bytes) -> Callable[..., Iterator[pb.DownloadParametersResponse]]:
    def answer(*_: object) -> Iterator[pb.DownloadParametersResponse]:
        yield pb.DownloadParametersResponse(header=pb.ParametersHeader(layout=LAYOUT, version=1, sha256=sha256))
        for part in parts:
            yield pb.DownloadParametersResponse(data=part)

    return answer


def test_parameters_come_in_parts() -> None:
    with serving(DownloadParameters=parameters(RIGHT, VALUES[:5], VALUES[5:])) as job:
        assert job.parameters()["0.bias"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("sha256", "parts"),
    [("0" * 64, [VALUES]), (RIGHT, [VALUES[:8]]), (RIGHT, [VALUES, b"more"]), (RIGHT, [])],
    ids=["another digest", "too few bytes", "too many", "none"],
)
def test_parameters_that_arrive_damaged_are_refused(sha256: str, parts: list[bytes], tmp_path: Path) -> None:
    with serving(DownloadParameters=parameters(sha256, *parts)) as job:
        with pytest.raises(ThalwegError, match="arrived damaged; try again"):
            job.save(tmp_path / "w.safetensors")
        assert names_in(tmp_path) == []


def test_a_download_that_breaks_is_begun_again() -> None:
    calls = []

    def answer(request: pb.DownloadParametersRequest, context: grpc.ServicerContext) -> Iterator[pb.DownloadParametersResponse]:
        calls.append(request)
        messages = parameters(RIGHT, VALUES[:5], VALUES[5:])()
        yield from (next(messages) for _ in range(2))
        if len(calls) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "a cable was pulled")
        yield from messages

    with serving(DownloadParameters=answer) as job:
        assert job.parameters()["0.bias"].tolist() == [1, 2, 3, 4]
    assert len(calls) == 2


def test_a_trajectory_that_arrives_damaged_is_refused() -> None:
    def answer(*_: object) -> Iterator[pb.DownloadTrajectoryResponse]:
        yield pb.DownloadTrajectoryResponse(header=pb.TrajectoryHeader(layout=LAYOUT, versions=[0, 1]))
        yield pb.DownloadTrajectoryResponse(data=VALUES)

    with serving(DownloadTrajectory=answer) as job, pytest.raises(ThalwegError, match="arrived damaged"):
        job.trajectory()


def test_data_that_arrives_damaged_leaves_no_file(tmp_path: Path) -> None:
    with serving(DownloadData=lambda *_: iter([pb.DownloadDataResponse(data=b"other")])) as job:
        with pytest.raises(ThalwegError, match="the data arrived damaged"):
            job.download_data(RIGHT, tmp_path)
        assert names_in(tmp_path) == []
        path = job.download_data(hashlib.sha256(b"other").hexdigest(), tmp_path)
        assert path.read_bytes() == b"other"
        with pytest.raises(LocalError, match="there is no folder"):
            job.download_data(RIGHT, tmp_path / "nowhere")


def test_what_is_no_thalweg_server_is_told() -> None:
    with serving() as job, pytest.raises(ThalwegError, match="not a Thalweg server, or is another release") as caught:
        job.trajectory()
    assert caught.value.reason == "UNREACHABLE"


def points(folder: Path) -> dict[str, Path]:
    """Two hundred points of a plane, in a file of each kind."""
    x = np.random.default_rng(0).normal(size=(200, 2))
    y = (x.sum(1) > 0).astype(np.int64)
    np.savez(folder / "points.npz", x=x, y=y)
    lines = ["side,a,b", *(f"{label},{a},{b}" for (a, b), label in zip(x.tolist(), y.tolist(), strict=True))]
    (folder / "points.csv").write_text("\n".join(lines))
    return {"npz": folder / "points.npz", "csv": folder / "points.csv"}


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_a_job_learns_from_an_uploaded_file(kind: str, cluster: Cluster, tmp_path: Path) -> None:
    path = points(tmp_path)[kind]
    data = {kind: str(path), "standardize": True} | ({"target": "side"} if kind == "csv" else {})
    job = cluster.client.submit("xor", {"data": data, "training.epochs": 20, "training.batch_size": 40})
    result = job.wait()
    assert result.train
    assert result.train.loss < 0.1
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert job.spec.data.sha256 == sha256
    assert job.download_data(sha256, tmp_path).read_bytes() == path.read_bytes()


def test_parameters_to_start_from_are_uploaded(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "gate.safetensors"
    cluster.gate.save(path)
    job = cluster.client.submit("xor", {"model.initial.file": str(path), "training.epochs": 0})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert job.spec.model.initial.sha256 == sha256
    assert job.download_data(sha256, tmp_path).read_bytes() == path.read_bytes()
    assert job.wait().weights_sha256 == cluster.gate.result().weights_sha256


def test_a_file_larger_than_one_message_arrives_whole(cluster: Cluster, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(700_000, 1))
    np.savez(tmp_path / "large.npz", x=x, y=np.zeros(len(x)))
    job = cluster.client.submit("xor", {"data.npz": "large.npz", "training.epochs": 0})
    path = job.download_data(job.spec.data.sha256, tmp_path)
    assert path.read_bytes() == (tmp_path / "large.npz").read_bytes()
    job.cancel()


def test_a_file_is_uploaded_once(cluster: Cluster, tmp_path: Path) -> None:
    path = points(tmp_path)["npz"]
    jobs = [cluster.client.submit("xor", {"data.npz": str(path), "training.epochs": 0}) for _ in range(2)]
    assert jobs[0].spec.data.sha256 == jobs[1].spec.data.sha256
    again = cluster.client.submit(jobs[0].spec)
    assert again.spec == jobs[0].spec


def large_file(folder: Path) -> Path:
    """A file of several messages."""
    path = folder / "large.npz"
    np.savez(path, x=np.random.default_rng(2).normal(size=(500_000, 1)), y=np.zeros(500_000))
    return path


def upload_of(client: Client, path: Path) -> bytes:
    """What the server has of a file after a job was submitted that learns from it."""
    job = client.submit("xor", {"data.npz": str(path), "training.epochs": 0})
    return job.download_data(job.spec.data.sha256, path.parent).read_bytes()


_SERVE = """
import signal, sys
from pathlib import Path
from thalweg.contract.endpoint import Address
from thalweg.server.process import Server, ServerConfig

print(Server(ServerConfig(Address("127.0.0.1", int(sys.argv[2])), Path(sys.argv[1]))).start().port, flush=True)
signal.pause()
"""


@contextmanager
def server_process(data: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-c", _SERVE, str(data), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_an_upload_to_a_server_that_is_killed_goes_on_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data, pread = large_file(tmp_path), tmp_path / "server", os.pread
    part = data / "uploads" / f"{hashlib.sha256(path.read_bytes()).hexdigest()}.part"
    positions, resumed_at = [], []
    with ExitStack() as stack:
        process, port = stack.enter_context(server_process(data))

        def read_and_kill(file: int, size: int, position: int) -> bytes:
            positions.append(position)
            if len(positions) == 3:
                wait_for(lambda: part.exists() and part.stat().st_size > 0)
                process.kill()
                process.wait()
                resumed_at.append(part.stat().st_size)
                stack.enter_context(server_process(data, port))
            return pread(file, size, position)

        client = stack.enter_context(Client(f"127.0.0.1:{port}"))
        monkeypatch.setattr(os, "pread", read_and_kill)
        assert upload_of(client, path) == path.read_bytes()
    assert positions[:3] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert resumed_at[0] > 0
    # The call that broke off may have read on.
    assert resumed_at[0] in positions[3:]
    assert 0 not in positions[3:]


def test_an_upload_that_another_client_began_is_resumed(cluster: Cluster, tmp_path: Path) -> None:
    path = large_file(tmp_path)
    content = path.read_bytes()
    sha256, half = hashlib.sha256(content).hexdigest(), 1 << 20
    stub = cluster.client._connection.stub
    header = pb.UploadHeader(sha256=sha256, size=len(content))
    with pytest.raises(grpc.RpcError):
        stub.UploadData(iter([pb.UploadDataRequest(header=header), pb.UploadDataRequest(data=content[:half])]))
    assert stub.GetUpload(pb.GetUploadRequest(sha256=sha256)).received == half
    sent: list[int] = []

    class Counting:
        """A method of the server, with the bytes that are sent counted."""

        def future(self, requests: Iterator[pb.UploadDataRequest], **options: Any) -> Any:
            def counted() -> Iterator[pb.UploadDataRequest]:
                for request in requests:
                    sent.append(len(request.data))
                    yield request

            return upload_data.future(counted(), **options)

    upload_data = stub.UploadData
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stub, "UploadData", Counting())
        assert upload_of(cluster.client, path) == content
    assert sum(sent) == len(content) - half


def test_an_upload_whose_connection_dies_unnoticed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_SILENT_SECONDS", 0.2)
    path, data, pread = large_file(tmp_path), tmp_path / "server", os.pread
    part = data / "uploads" / f"{hashlib.sha256(path.read_bytes()).hexdigest()}.part"
    positions: list[int] = []
    with running_server(data) as server, cable(server.address) as laid, Client(laid.address) as client:

        def read_and_drop(file: int, size: int, position: int) -> bytes:
            positions.append(position)
            if len(positions) == 3:
                wait_for(lambda: part.exists() and part.stat().st_size > 0)
                # The server's end stays open.
                laid.drop()
            return pread(file, size, position)

        monkeypatch.setattr(os, "pread", read_and_drop)
        assert upload_of(client, path) == path.read_bytes()
    assert positions[:3] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert len(positions) > 3
    assert 0 not in positions[3:]


@pytest.mark.parametrize("sent", [CHUNK_BYTES, 0])
def test_an_upload_goes_on_as_long_as_more_of_it_arrives(sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PATIENCE", ())
    path = large_file(tmp_path)
    got = bytearray()
    calls = []

    def upload_data(requests: Iterator[pb.UploadDataRequest], context: grpc.ServicerContext) -> pb.UploadDataResponse:
        header = next(requests).header
        assert header.offset == len(got)
        calls.append(header)
        got.extend(next(requests).data[:sent])
        if len(got) < header.size:
            context.abort(grpc.StatusCode.UNAVAILABLE, "a cable was pulled")
        return pb.UploadDataResponse(sha256=header.sha256)

    with serving(UploadData=upload_data, GetUpload=lambda *_: pb.GetUploadResponse(received=len(got))) as job:
        job._connection.backoffs = (0.0,)
        if sent:
            transfer.upload(job._connection, path)
            assert got == path.read_bytes()
            assert len(calls) > 4
        else:
            with pytest.raises(ThalwegError, match="a cable was pulled"):
                transfer.upload(job._connection, path)
            assert len(calls) == 2


@pytest.mark.parametrize("whole", [True, False])
def test_a_server_of_an_earlier_release_gets_the_whole_file(whole: bool, tmp_path: Path) -> None:
    path = large_file(tmp_path)
    got: list[pb.UploadDataRequest] = []

    def upload_data(requests: Iterator[pb.UploadDataRequest], _: object) -> pb.UploadDataResponse:
        got.extend(requests if whole else [next(requests)])
        return pb.UploadDataResponse(sha256=got[0].header.sha256)

    with serving(UploadData=upload_data) as job:
        assert transfer.upload(job._connection, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert got[0].header.offset == 0
    assert b"".join(request.data for request in got) == (path.read_bytes() if whole else b"")


def test_what_a_server_has_of_a_file_and_is_damaged_is_sent_again(tmp_path: Path) -> None:
    path = large_file(tmp_path)
    content = path.read_bytes()
    with running_server(tmp_path / "server") as server, Client(server.address) as client:
        part = tmp_path / "server" / "uploads" / f"{hashlib.sha256(content).hexdigest()}.part"
        part.write_bytes(b"damaged" + content[7 : 1 << 20])
        assert upload_of(client, path) == content
        assert not part.exists()


class Recorded(list[tuple[int, int]]):
    """What a client reports of its uploads."""

    def __call__(self, done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.append((done, total))


def test_the_progress_of_uploads_is_reported(tmp_path: Path) -> None:
    path = large_file(tmp_path)
    size, reported, again, none = path.stat().st_size, Recorded(), Recorded(), Recorded()
    with running_server(tmp_path / "server") as server, Client(server.address) as client:
        client.submit("xor", {"data.npz": str(path)}, progress=reported)
        client.submit("xor", {"data.npz": str(path)}, progress=again)
        client.submit("xor", progress=none)
    assert reported[0] == (0, size)
    assert reported[-1] == (size, size)
    done = [done for done, _ in reported]
    assert done == sorted(done)
    assert set(range(CHUNK_BYTES, size, CHUNK_BYTES)) < set(done)
    assert again == [(0, size), (size, size)]
    assert none == []


def test_the_files_of_one_job_are_reported_together(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.npy" for name in "xy"}
    for path in paths.values():
        np.save(path, np.zeros((400_000, 1)))
    sizes = [path.stat().st_size for path in paths.values()]
    reported = Recorded()
    with running_server(tmp_path / "server") as server, Client(server.address) as client:
        client.submit("xor", {"data": {"npy": {name: str(path) for name, path in paths.items()}}}, progress=reported)
    assert {total for _, total in reported} == {sum(sizes)}
    done = [done for done, _ in reported]
    # The second file has the first one's content.
    assert done[-2:] == [sizes[0], sum(sizes)]
    assert CHUNK_BYTES in done


def test_what_the_server_has_of_an_upload_counts_as_done(tmp_path: Path) -> None:
    path = large_file(tmp_path)
    content, reported = path.read_bytes(), Recorded()
    with running_server(tmp_path / "server") as server, Client(server.address) as client:

        def stop(done: int, _: int) -> None:
            if done == 2 * CHUNK_BYTES:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            client.submit("xor", {"data.npz": str(path)}, progress=stop)
        assert client.jobs() == []
        part = tmp_path / "server" / "uploads" / f"{hashlib.sha256(content).hexdigest()}.part"
        # The call ended, and what it sent is being written, or was.
        received = client._connection.stub.GetUpload(pb.GetUploadRequest(sha256=part.stem)).received
        assert part.stat().st_size == received
        client.submit("xor", {"data.npz": str(path)}, progress=reported)
    assert [done for done, _ in reported][:2] == [0, received]


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = points(tmp_path)["npz"]
    with running_server(tmp_path / "server", max_upload_bytes=100) as server, Client(server.address) as client:
        with pytest.raises(ThalwegError, match=r"the file exceeds this server's upload limit \(100 bytes\)") as caught:
            client.submit("xor", {"data.npz": str(path)})
        assert caught.value.reason == "TOO_LARGE"
        assert client.jobs() == []


def test_data_that_the_server_does_not_have_is_told(cluster: Cluster) -> None:
    with pytest.raises(ThalwegError, match=f"no data with the SHA-256 {RIGHT}: it was not uploaded") as caught:
        cluster.client.submit("xor", {"data": {"npz": "a.npz", "sha256": RIGHT}})
    assert caught.value.reason == "DATA_NOT_FOUND"
    with pytest.raises(ThalwegError, match="no data with"):
        cluster.gate.download_data(RIGHT, Path())


def test_a_file_that_vanished_is_told(cluster: Cluster, tmp_path: Path) -> None:
    path = points(tmp_path)["npz"]
    loaded = load_job("xor", {"data.npz": str(path)})
    path.unlink()
    with pytest.raises(LocalError) as caught:
        cluster.client.submit(loaded)
    assert str(caught.value) == f"cannot read {path}: No such file or directory"


X, Y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0]


def test_arrays_are_learnt_from_like_a_file_of_them(cluster: Cluster, tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", x=np.array(X), y=np.array(Y))
    settings = {"training.epochs": 5}
    of_file = cluster.client.submit("xor", settings | {"data.npz": str(tmp_path / "arrays.npz")})
    of_arrays = cluster.client.submit("xor", settings, data=(X, np.array(Y)))
    of_loaded = cluster.client.submit(load_job("xor", settings), data=(np.array(X), Y))
    of_nowhere = cluster.client.submit("xor", [*(f"{k}={v}" for k, v in settings.items()), "data.csv=nowhere.csv"], data=(X, Y))
    jobs = of_file, of_arrays, of_loaded, of_nowhere
    assert {job.spec.data.sha256 for job in jobs} == {of_file.spec.data.sha256}
    assert of_arrays.spec.data.npz == "arrays.npz"
    assert len({job.wait().weights_sha256 for job in jobs}) == 1
    for job in jobs:
        job.delete()


class Tensor:
    """What a tensor of another library may be."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("call detach() first")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ((X, Y[:-1]), "x has 4 samples but y has 3; the counts must match"),
        ((X,), "must be a pair of arrays: the samples x and their targets y"),
        ((X, ["a", "b", "c", "d"]), "y holds elements of type <U1; it must hold real numbers"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "x is not an array: "),
        ((Tensor(), [0, 1]), "x is not an array: call detach() first"),
    ],
)
def test_what_is_no_pair_of_arrays_is_told(data: Any, problem: str, cluster: Cluster) -> None:
    with pytest.raises(ThalwegError) as caught:
        cluster.client.submit("xor", data=data)
    assert str(caught.value).startswith(f"data: {problem}")


def test_arrays_that_find_no_room_are_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(LocalError, match=r"cannot write the arrays to .*: No space left on device"):
        cluster.client.submit("xor", data=(X, Y))
