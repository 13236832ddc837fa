"""Uploads of data, and downloads of parameters, trajectories and data, in chunks."""

import hashlib
import os
import queue
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

import grpc
import numpy as np

from thalweg.client.connection import Connection, code_of
from thalweg.client.errors import LocalError
from thalweg.client.files import write_whole
from thalweg.contract import layout as layouts
from thalweg.contract.endpoint import CHUNK_BYTES
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# How long an upload that broke off waits besides for the server to come back: a larger server needs that to start.
_PATIENCE = (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
# An upload goes on when the server can be reached again, and when the server ended it because nothing arrived for too long.
_BROKEN_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_BROKEN_REASONS = ("UNREACHABLE", "TOO_SLOW")


# Called with the bytes of all files that the server has, and their bytes in all.
UploadProgress: TypeAlias = Callable[[int, int], object]


class Meter:
    """Reports the progress of several files, `total` bytes in all, which are uploaded one after another."""

    def __init__(self, report: UploadProgress | None, total: int) -> None:
        self._report = report if total else None
        self._total = total
        self._before = 0
        self(0)

    def __call__(self, done: int) -> None:
        """The server has some bytes of the present file."""
        if self._report is not None:
            self._report(self._before + done, self._total)

    def finish(self, size: int) -> None:
        """The server has the present file, which has `size` bytes."""
        self(size)
        self._before += size


class _Part(Protocol):
    """A message of a download."""

    @property
    def data(self) -> bytes: ...


def upload(connection: Connection, path: Path, done: Callable[[int], object] = lambda _: None) -> str:
    """Uploads a file to the server, if it is not there yet. Returns its SHA-256. Raises ThalwegError if that fails.

    An upload that broke off, by this client or another one, is resumed. `done` is called in this thread with the number of bytes
    that were sent or were there already, about once for each MiB; it is less than before if bytes were lost on their way.
    """
    with _reading(path), path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        header = pb.UploadHeader(sha256=sha256, size=path.stat().st_size)
        # Uploads are named by their content, so that a second attempt changes nothing.
        if not connection.attempt(lambda: _received_by_server(connection, sha256)).whole:
            _send_patiently(connection, file.fileno(), header, done)
    return sha256


def bytes_of(path: Path) -> int:
    """The size of a file that is to be uploaded. Raises ThalwegError if it cannot be read."""
    with _reading(path):
        return path.stat().st_size


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}") from error


def _received_by_server(connection: Connection, sha256: str) -> pb.GetUploadResponse:
    """What the server has of a file. Raises what gRPC raises."""
    try:
        # Without a deadline: the server reads a file that it has.
        return connection.stub.GetUpload(pb.GetUploadRequest(sha256=sha256), metadata=connection.metadata)
    except grpc.RpcError as error:
        # An earlier release, which needs all of the file.
        if code_of(error) is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return pb.GetUploadResponse()


def _send_patiently(connection: Connection, file: int, header: pb.UploadHeader, done: Callable[[int], object]) -> None:
    """Sends a file, given by its descriptor, in as many attempts as bring more of it to the server. Raises ThalwegError."""
    resumed = 0
    while True:
        try:
            connection.attempt(lambda: _send(connection, file, header, done), patience=_PATIENCE, again=_BROKEN_OFF)
        except ThalwegError as error:
            # The last attempt began where those before had ended.
            if error.reason not in _BROKEN_REASONS or header.offset <= resumed:
                raise
            resumed = header.offset
        else:
            return


def _send(connection: Connection, file: int, header: pb.UploadHeader, done: Callable[[int], object]) -> None:
    """Sends what the server lacks of a file, given by its descriptor. Raises what gRPC raises, and what `done` raises."""
    header.offset = _received_by_server(connection, header.sha256).received
    try:
        _send_rest(connection, file, header, done)
    except grpc.RpcError as error:
        if header.offset == 0 or code_of(error) is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        # What the server had was damaged, and is discarded; or another client continues it.
        header.offset = 0
        _send_rest(connection, file, header, done)


def _send_rest(connection: Connection, file: int, header: pb.UploadHeader, done: Callable[[int], object]) -> None:
    """Sends a file from the header's offset on."""
    # Positions to which the file was sent, and None at the end of the call.
    sent: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def requests() -> Iterator[pb.UploadDataRequest]:
        position = header.offset
        sent.put(position)
        yield pb.UploadDataRequest(header=header)
        # Not from the file's own position, which belongs to all attempts: gRPC may still be reading for one that broke off.
        while part := os.pread(file, CHUNK_BYTES, position):
            position += len(part)
            yield pb.UploadDataRequest(data=part)
            sent.put(position)

    # gRPC asks for the messages in a thread of its own.
    call = connection.stub.UploadData.future(requests(), metadata=connection.metadata)
    call.add_done_callback(lambda _: sent.put(None))
    try:
        while (position := sent.get()) is not None:
            done(position)
    except BaseException:
        call.cancel()
        raise
    # A call that failed is itself the error.
    error: object = call
    if call.code() is not grpc.StatusCode.OK and isinstance(error, grpc.RpcError):
        raise error


def refer(path: Path, folder: Path, move: bool = False) -> str:
    """Lets a server on this machine, whose uploads are in a folder, use a file in place. Returns its SHA-256.

    With `move` the file itself is moved there. Raises ThalwegError if the file cannot be read, or the folder cannot be written.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        target = folder / sha256
        # Another file of the same content may have been moved or changed since; an upload stays.
        if target.is_symlink() or not target.exists():
            aside = folder / f"{uuid.uuid4()}.part"
            if move:
                shutil.move(path, aside)
            else:
                aside.symlink_to(path.absolute())
            aside.replace(target)
    except OSError as error:
        raise LocalError(f"cannot use {path} from {folder}: {error.strerror}") from error
    return sha256


def download_parameters(connection: Connection, job_id: str) -> tuple[pb.ParametersHeader, Slab]:
    """A job's parameters and their header. Raises ThalwegError, also if they arrive damaged."""

    def fetch() -> tuple[pb.ParametersHeader, Slab]:
        stream = connection.stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job_id), metadata=connection.metadata)
        header = next(stream).header
        slab = _received(stream, header.layout, 1)[0]
        if layouts.digest(slab) != header.sha256:
            raise _damaged("the parameters")
        return header, slab

    return connection.attempt(fetch)


def download_trajectory(connection: Connection, job_id: str) -> tuple[pb.TrajectoryHeader, Slab]:
    """A job's trajectory, shape (versions, elements), and its header. Raises ThalwegError."""

    def fetch() -> tuple[pb.TrajectoryHeader, Slab]:
        stream = connection.stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id=job_id), metadata=connection.metadata)
        header = next(stream).header
        return header, _received(stream, header.layout, len(header.versions))

    return connection.attempt(fetch)


def download_data(connection: Connection, sha256: str, folder: Path) -> Path:
    """An uploaded file, as a file in a folder, completely or not at all. Raises ThalwegError, also if it arrives damaged."""
    path = folder / sha256

    def fetch(aside: Path) -> None:
        digest = hashlib.sha256()
        with aside.open("wb") as file:
            for part in connection.stub.DownloadData(pb.DownloadDataRequest(sha256=sha256), metadata=connection.metadata):
                digest.update(part.data)
                file.write(part.data)
        if digest.hexdigest() != sha256:
            raise _damaged("the data")

    write_whole(path, lambda aside: connection.attempt(lambda: fetch(aside)))
    return path


def _received(parts: Iterable[_Part], layout: job_pb2.Layout, slabs: int) -> Slab:
    """The slabs of shape (slabs, elements) from the bytes of a stream."""
    result = np.empty((slabs, layouts.elements(layout)), layouts.dtype_of(layout))
    room = result.reshape(-1).data.cast("B")
    end = 0
    for part in parts:
        start, end = end, end + len(part.data)
        if end > len(room):
            raise _damaged("the answer")
        room[start:end] = part.data
    if end != len(room):
        raise _damaged("the answer")
    return result


def _damaged(what: str) -> ThalwegError:
    return ThalwegError("INTERNAL", {"problem": f"{what} arrived damaged; try again"})
