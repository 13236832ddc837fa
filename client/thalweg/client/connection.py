"""One connection to a server: deadlines, retries, and readable errors in place of gRPC's."""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import grpc

from thalweg.client.errors import LocalError
from thalweg.contract.endpoint import Endpoint, Metadata, forks_are_supported
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import access_service_pb2_grpc, cluster_service_pb2_grpc, training_service_pb2_grpc

T = TypeVar("T")

CALL_SECONDS = 30.0
# The seconds between attempts. A server that is being restarted is back by then, and a wrong address is reported within a second.
_BACKOFFS = (0.1, 0.5)


class Connection:
    """A channel to the server at an address, with the token of every call.

    `began` is called with the id of each job that is created or resumed. `backoffs` are the seconds that a call waits before each
    further attempt while the server is unavailable.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self.began: Callable[[str], object] = lambda _: None
        self.backoffs: Sequence[float] = _BACKOFFS
        # Whether all jobs of the server are this user's own, whose code may run in this process.
        self.own = False
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._channels: list[grpc.Channel] = []
        self._open()
        self._process = os.getpid()
        self._closed = False

    def _open(self) -> None:
        stamp = self._endpoint.tls and self._endpoint.tls.stamp
        self._channels.append(self._endpoint.open())
        self._stamp = stamp
        self._stub = training_service_pb2_grpc.TrainingServiceStub(self._channels[-1])
        self._access = access_service_pb2_grpc.AccessServiceStub(self._channels[-1])
        self._cluster = cluster_service_pb2_grpc.ClusterServiceStub(self._channels[-1])

    def close(self) -> None:
        """Ends the connection and all calls."""
        with self._lock:
            self._closed = True
            channels = self._channels
        for channel in channels if self._usable_here else ():
            channel.close()

    @property
    def metadata(self) -> Metadata:
        """The metadata of a call that is made now."""
        return self._endpoint.metadata

    @property
    def stub(self) -> training_service_pb2_grpc.TrainingServiceStub:
        """The server's methods, on a new channel if files of TLS have changed. Calls on earlier channels continue.

        Raises ThalwegError if the connection was closed, or belongs to another process.
        """
        self._refresh()
        return self._stub

    @property
    def access(self) -> access_service_pb2_grpc.AccessServiceStub:
        """The server's methods for tokens. Raises ThalwegError as `stub` does."""
        self._refresh()
        return self._access

    @property
    def cluster(self) -> cluster_service_pb2_grpc.ClusterServiceStub:
        """The server's methods for operators. Raises ThalwegError as `stub` does."""
        self._refresh()
        return self._cluster

    def _refresh(self) -> None:
        """Opens a new channel if files of TLS have changed. Raises ThalwegError if the connection cannot be used."""
        if self._closed:
            raise self._was_closed()
        if not self._usable_here:
            raise LocalError(
                f"this client of {self.address} was opened before the process forked; open another one in the new process, "
                "or set GRPC_ENABLE_FORK_SUPPORT=1 before Python starts"
            )
        with self._lock:
            if self._endpoint.tls and self._endpoint.tls.stamp != self._stamp and not self._closed:
                # Files may be in the middle of a change. The channel that is there works, or its calls say why not.
                with suppress(ThalwegError):
                    self._open()

    @property
    def _usable_here(self) -> bool:
        return self._process == os.getpid() or forks_are_supported()

    def _was_closed(self) -> LocalError:
        return LocalError(f"the client of {self.address} was closed; open another one to use its jobs")

    @contextmanager
    def open_throughout(self) -> Iterator[None]:
        """Raises ThalwegError if the connection is closed within, by another thread."""
        try:
            yield
        except ValueError as error:
            # gRPC raises it on a closed channel.
            if not self._closed:
                raise
            raise self._was_closed() from error

    def call(self, method: Callable[..., T], request: Any, retry: bool = True, seconds: float = CALL_SECONDS) -> T:
        """Makes a call with one answer. `retry` says whether it is safe to call twice."""
        return self.attempt(lambda: self.call_once(method, request, seconds), retry)

    def call_once(self, method: Callable[..., T], request: Any, seconds: float = CALL_SECONDS) -> T:
        """Makes a call with one answer, once. Raises what gRPC raises."""
        return method(request, metadata=self.metadata, timeout=seconds)

    def attempt(
        self,
        action: Callable[[], T],
        retry: bool = True,
        patience: Sequence[float] = (),
        again: Collection[grpc.StatusCode] = (grpc.StatusCode.UNAVAILABLE,),
    ) -> T:
        """Runs an action that calls the server, again if it fails with a code in `again`. Raises ThalwegError if it fails.

        `patience` are seconds to wait before further attempts, after those of this connection.
        """
        for backoff in (*self.backoffs, *patience) if retry else ():
            try:
                with self.open_throughout():
                    return action()
            except grpc.RpcError as error:
                if code_of(error) not in again:
                    raise self.translated(error) from error
            time.sleep(backoff)
        with self.errors():
            return action()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns gRPC's exceptions within the context into ThalwegError."""
        try:
            with self.open_throughout():
                yield
        except grpc.RpcError as error:
            raise self.translated(error) from error

    def translated(self, error: grpc.RpcError) -> ThalwegError:
        """The error that gRPC's exception stands for, in plain words."""
        if code_of(error) is grpc.StatusCode.UNIMPLEMENTED:
            problem = "the process that answers there is not a Thalweg server, or is another release"
            return ThalwegError("UNREACHABLE", {"address": str(self.address), "problem": problem})
        return self._endpoint.translated(error)


def code_of(error: object) -> grpc.StatusCode:
    """The status of a call that has ended."""
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
