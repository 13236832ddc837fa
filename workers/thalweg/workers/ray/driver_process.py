"""The fleet's side of the process that drives Ray: its start, its messages, and its end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from thalweg.contract.resources import cpus
from thalweg.contract.text import MAX_LAST_WORDS, visible
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.workers.ray import environment as ray_environment
from thalweg.workers.ray.config import FleetConfig
from thalweg.workers.ray.folder import RayFolder, RayFolderError
from thalweg.workers.ray.messages import Failed, Hold, Orders
from thalweg.workers.ray.processes import wait_for_end

_CHECK_SECONDS = 0.2
# Before anything imports gRPC.
_PREPARED = "from thalweg.contract.process import prepare; prepare()"
# The message of Ray's head to a driver with another token.
_REFUSED = "InvalidAuthToken"
HOW_TO_GIVE = "give the one that its nodes were started with, by --ray-token-file FILE or RAY_AUTH_TOKEN_PATH"


class DriverLostError(Exception):
    """The driver ended, or hangs. The message has the reason, as far as it is known."""


class DriverProcess:
    """A driver: its process, and the connection to it."""

    def __init__(self, config: FleetConfig, fleet_id: str) -> None:
        with ExitStack() as stack:
            folder = _new_folder() if config.ray_address is None else None
            if folder:
                stack.callback(folder.remove)
            path = folder.path if folder else None
            self._socket, theirs = socket.socketpair()
            stack.callback(self._socket.close)
            self._errors = stack.enter_context(tempfile.TemporaryFile(dir=path))
            with theirs:
                self._process = _run(theirs.fileno(), self._errors, _environment(config, path))
            # Closed or removed when the process has ended.
            self._stack = stack.pop_all()
        self._connection = Connection(os.dup(self._socket.fileno()))
        where = config.ray_address, config.slots or cpus()
        allowed = config.allow_code, config.allow_requirements
        # This process alone needs the fleet's token.
        server = config.server._replace(token=None)
        orders = Orders(config.name, fleet_id, server, *where, os.getpid(), config.trust_network, path, *allowed, config.data)
        self.tell(orders)

    def tell(self, message: Orders | Hold | pb.AttendResponse) -> None:
        """Sends a message. If the driver is gone, `listen` raises."""
        with suppress(OSError):
            self._connection.send(message)

    def listen(self, seconds: float, check: Callable[[], object] = lambda: None) -> Any:
        """The driver's next message. Raises what `check` raises, and DriverLostError if it is gone or silent for that time."""
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(min(_CHECK_SECONDS, max(0.0, deadline - time.monotonic()))):
                check()
                if time.monotonic() >= deadline:
                    raise DriverLostError(f"it has not answered for {seconds:.0f} s")
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise DriverLostError(self._refusal() or self._last_words()) from error
        if isinstance(message, Failed):
            raise DriverLostError(self._refusal() or message.problem)
        return message

    def _refusal(self) -> str | None:
        """A message that the cluster has another token, if that is the reason."""
        return f"it refuses this token; {HOW_TO_GIVE}" if _REFUSED in self._said() else None

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def _last_words(self) -> str:
        lines = self._said().splitlines()
        # Ray writes the time, the process and the thread in brackets before it.
        return visible(lines[-1].rpartition("] ")[2], MAX_LAST_WORDS) if lines else "its driver ended without a message"

    def hang_up(self) -> None:
        """Asks the driver to end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def end(self, patience: float) -> None:
        """Waits some seconds for the process to end, then kills it and the rest of the Ray that it started."""
        self.hang_up()
        wait_for_end(self._process.pid, patience)
        # The process leads a group of its own. Its id is not used again before the process was waited for.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._stack.close()


def _run(descriptor: int, errors: IO[bytes], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a driver's process, which has the other end of the connection as a descriptor."""
    command = f"{_PREPARED}; from thalweg.workers.ray.driver import main; main({descriptor})"
    try:
        # In a session of its own: a terminal sends Ctrl-C to a whole group, but the fleet is to end this process.
        return subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
            [sys.executable, "-P", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[descriptor],
            start_new_session=True,
            env=environment,
        )
    except OSError as error:
        raise DriverLostError(f"its driver, a process of {sys.executable}, cannot be started: {error.strerror}") from error


def _new_folder() -> RayFolder:
    try:
        return RayFolder.make()
    except RayFolderError as error:
        raise DriverLostError(str(error)) from error


def _environment(config: FleetConfig, folder: Path | None) -> dict[str, str]:
    """A driver's environment. `folder` is for the files of the fleet's own Ray."""
    if folder:
        return ray_environment.for_own_ray(folder)
    return ray_environment.for_cluster(config.ray_token_file, trust_network=config.trust_network)
