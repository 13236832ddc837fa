"""A Ray fleet: attends on a server, and passes on what it is allotted to the process that drives Ray (`keeper.py`)."""

import logging
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import IO, Any

import grpc

from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError, from_rpc_error
from thalweg.contract.release import capacity
from thalweg.contract.resources import cpus
from thalweg.contract.text import MAX_LAST_WORDS, visible
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1 import fleet_service_pb2_grpc
from thalweg.workers.ray import environment as ray_environment
from thalweg.workers.ray.driver import FIRST_BACKOFF, MAX_BACKOFF, Alive, Failed, Hold, Orders
from thalweg.workers.ray.folder import RayFolder, RayFolderError
from thalweg.workers.ray.processes import wait_for_end

_log = logging.getLogger(__name__)
# Ray takes some seconds to start, and many on a busy machine.
_START_SECONDS = 120.0
# A keeper that says nothing for so long hangs in a call of Ray's.
_SILENCE_SECONDS = 15.0
_CHECK_SECONDS = 0.2
# How long its end may take: on a busy machine, and where it comes while Ray starts, long.
_STOP_SECONDS = 30.0
# Before anything imports gRPC.
_PREPARED = "from thalweg.contract.process import prepare; prepare()"
# How long workers are kept while the server cannot be reached: longer than the longest wait between two attempts.
_GRACE_SECONDS = 15.0
# What Ray's head says to a driver that has not its token.
_REFUSED = "InvalidAuthToken"
_HOW_TO_GIVE = "give the one that its nodes were started with, by --ray-token-file FILE or RAY_AUTH_TOKEN_PATH"


class FleetError(Exception):
    """The fleet cannot start; the message says why and what would do."""


@dataclass(frozen=True)
class FleetConfig:
    """How a fleet runs: on the Ray cluster at `ray_address`, or, if that is None, on a Ray of its own with `slots` CPU slots.

    `ray_token_file` holds the cluster's token; if None, it is where Ray itself looks. A cluster without one is refused, unless
    `trust_network`.
    """

    server: Endpoint
    ray_address: str | None = None
    ray_token_file: Path | None = None
    trust_network: bool = False
    slots: int | None = None
    name: str = field(default_factory=platform.node)


class Fleet:
    """A fleet in threads of its own, and a process. It outlives Ray, and gets it again."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self._server = config.server
        self._stop = threading.Event()
        # Guards what both threads use: the streams to the server and to the keeper, and what goes first on new ones.
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[pb.AttendRequest | None] = queue.SimpleQueue()
        self._id = uuid.uuid4().hex
        self._cluster = Alive(0, ())
        # Since when the server cannot be reached, while workers are kept; and what the keeper was told last.
        self._lost_since: float | None = None
        self._orders: pb.AttendResponse | Hold = pb.AttendResponse()
        self._keeper: _Keeper | None = None
        self._call: Any = None
        self._threads = [
            threading.Thread(target=self._attend, name="thalweg-attend", daemon=True),
            threading.Thread(target=self._supervise, name="thalweg-fleet", daemon=True),
        ]

    def start(self, check: Callable[[], object] = lambda: None) -> None:
        """Starts or joins Ray, then attends. Raises FleetError if Ray cannot be had.

        `check` is called several times a second while Ray starts; what it raises ends the start.
        """
        if find_spec("ray") is None:
            raise FleetError("Ray is not installed; install it with: pip install 'thalweg[workers]'")
        where = f"join the Ray cluster at {self.config.ray_address}" if self.config.ray_address else "start Ray"
        has_token = self.config.ray_token_file or self.config.trust_network or ray_environment.has_token()
        if self.config.ray_address and not has_token:
            raise FleetError(f"cannot {where} without its token; {_HOW_TO_GIVE}")
        try:
            self._keeper = _Keeper(self.config, self._id)
            self._cluster = self._keeper.listen(_START_SECONDS, check)
        except _KeeperLostError as error:
            self._drop_keeper()
            raise FleetError(f"cannot {where}: {error}") from error
        except BaseException:
            # With patience: Ray's own processes end in good order only if the keeper ends them.
            self._stop.set()
            self._drop_keeper()
            raise
        if self._cluster.unreachable:
            self._drop_keeper()
            raise FleetError(
                f"the server's address {self.config.server.address} can be reached from this machine only, but the Ray "
                f"cluster has other machines: {', '.join(self._cluster.unreachable)}; give an address that all of them "
                "reach with --server"
            )
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the workers and leaves Ray; a Ray of its own ends."""
        self._stop.set()
        with self._lock:
            self._outbox.put(None)
            if self._call:
                self._call.cancel()
            if self._keeper:
                self._keeper.hang_up()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _attend(self) -> None:
        """Keeps a stream to the server, with a backoff between attempts."""
        backoff, said = FIRST_BACKOFF, ""
        where = f"the server at {self.config.server.address}"
        while not self._stop.is_set():
            connected = False
            try:
                with self._server.open() as channel:
                    for response in self._open(channel):
                        if not connected:
                            _log.info("connected to %s", where)
                            connected, backoff, said = True, FIRST_BACKOFF, ""
                        self._pass_on(response)
                problem = "it ended the connection"
            except grpc.RpcError as error:
                problem = _plain(from_rpc_error(error, str(self.config.server.address)))
            finally:
                self._outbox.put(None)
            if not self._stop.is_set():
                if problem != said:
                    _log.warning("%s %s: %s; trying again", "lost" if connected else "cannot reach", where, problem)
                said = problem
                self._hold()
            self._stop.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)

    def _open(self, channel: grpc.Channel) -> Iterator[pb.AttendResponse]:
        """A stream to the server, whose first message is the capacity."""
        with self._lock:
            outbox = self._outbox = queue.SimpleQueue()
            self._tell_capacity()
            stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
            self._call = stub.Attend(iter(outbox.get, None), metadata=self._server.metadata)
            if self._stop.is_set():
                self._call.cancel()
            call: Iterator[pb.AttendResponse] = self._call
            return call

    def _pass_on(self, allotment: pb.AttendResponse) -> None:
        """Tells the keeper its allotment, and the next one, should this one be lost."""
        with self._lock:
            self._lost_since = None
            self._order(allotment)

    def _hold(self) -> None:
        """The server cannot be reached. Workers have streams of their own, which may be well: they are kept for a while."""
        with self._lock:
            if self._lost_since is None and self._orders != pb.AttendResponse():
                self._lost_since = monotonic()
                self._order(Hold())

    def _let_go(self) -> None:
        """Ends the workers, if the server could not be reached for long."""
        with self._lock:
            if self._lost_since is not None and monotonic() - self._lost_since > _GRACE_SECONDS:
                self._lost_since = None
                self._order(pb.AttendResponse())

    def _order(self, orders: pb.AttendResponse | Hold) -> None:
        self._orders = orders
        if self._keeper:
            self._keeper.tell(orders)

    def _tell_capacity(self) -> None:
        cluster = self._cluster
        running = [
            pb.Allotment(job_id=job_id, workers=workers, slots_per_worker=slots)
            for job_id, (workers, slots) in cluster.running.items()
        ]
        said = capacity(self.config.name, cluster.slots, fleet=self._id, nodes=cluster.nodes, running=running)
        self._outbox.put(pb.AttendRequest(capacity=said))

    def _supervise(self) -> None:
        """Listens to the keeper, and starts another one when it is lost, with a backoff between attempts."""
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            try:
                keeper = self._keeper or self._replace_keeper()
                self._set_cluster(keeper.listen(_START_SECONDS))
                backoff = FIRST_BACKOFF
                while True:
                    self._heard(keeper.listen(_SILENCE_SECONDS))
            except (_KeeperLostError, OSError) as error:
                problem = str(error)
            self._drop_keeper()
            self._set_cluster(Alive(0, ()))
            if not self._stop.is_set():
                _log.warning("Ray is lost: %s; trying again in %.1f s", problem, backoff)
            self._stop.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)
        self._drop_keeper()

    def _replace_keeper(self) -> "_Keeper":
        with self._lock:
            self._keeper = keeper = _Keeper(self.config, self._id)
            keeper.tell(self._orders)
            if self._stop.is_set():
                keeper.hang_up()
            return keeper

    def _drop_keeper(self) -> None:
        with self._lock:
            keeper, self._keeper = self._keeper, None
        if keeper:
            keeper.end(_STOP_SECONDS if self._stop.is_set() else 0)

    def _heard(self, message: "Alive | pb.WorkerExited") -> None:
        if isinstance(message, Alive):
            self._set_cluster(message)
            self._let_go()
        else:
            _log.warning("a worker of job %s ended: %s", message.job_id, message.problem)
            with self._lock:
                self._outbox.put(pb.AttendRequest(worker_exited=message))

    def _set_cluster(self, cluster: Alive) -> None:
        with self._lock:
            if added := set(cluster.unreachable) - set(self._cluster.unreachable):
                where = ", ".join(sorted(added))
                _log.warning("no workers on %s: the server's address %s is this machine's own", where, self.config.server.address)
            changed = (cluster.slots, cluster.nodes) != (self._cluster.slots, self._cluster.nodes)
            self._cluster = cluster
            if changed:
                self._tell_capacity()


def _plain(error: ThalwegError) -> str:
    """Why the server cannot be reached, in words for people."""
    return error.metadata["problem"] if error.reason == "UNREACHABLE" else str(error)


class _KeeperLostError(Exception):
    """The keeper ended, or hangs. The message says what is known of why."""


class _Keeper:
    """The fleet's end of a keeper: its process, and the connection to it."""

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
            # What is to be closed or removed when the process has ended.
            self._stack = stack.pop_all()
        self._connection = Connection(os.dup(self._socket.fileno()))
        where = config.ray_address, config.slots or cpus()
        orders = Orders(config.name, fleet_id, config.server, *where, os.getpid(), config.trust_network, path)
        self.tell(orders)

    def tell(self, message: Orders | Hold | pb.AttendResponse) -> None:
        """Sends a message. If the keeper is gone, `listen` will say so."""
        with suppress(OSError):
            self._connection.send(message)

    def listen(self, seconds: float, check: Callable[[], object] = lambda: None) -> Any:
        """The keeper's next message. Raises what `check` raises, and _KeeperLostError if it is gone or silent for so long."""
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(min(_CHECK_SECONDS, max(0.0, deadline - time.monotonic()))):
                check()
                if time.monotonic() >= deadline:
                    raise _KeeperLostError(f"it has not answered for {seconds:.0f} s")
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _KeeperLostError(self._refusal() or self._last_words()) from error
        if isinstance(message, Failed):
            raise _KeeperLostError(self._refusal() or message.problem)
        return message

    def _refusal(self) -> str | None:
        """That the cluster has another token, if it was that."""
        return f"it refuses this token; {_HOW_TO_GIVE}" if _REFUSED in self._said() else None

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def _last_words(self) -> str:
        lines = self._said().splitlines()
        # Ray puts the time, the process and the thread in brackets before it.
        return visible(lines[-1].rpartition("] ")[2], MAX_LAST_WORDS) if lines else "its driver ended without a message"

    def hang_up(self) -> None:
        """Tells the keeper to end in its own time."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def end(self, patience: float) -> None:
        """Waits so many seconds for the process to end, then ends it and whatever is left of the Ray that it started."""
        self.hang_up()
        wait_for_end(self._process.pid, patience)
        # The process leads a group of its own. Its number is not given to another before the process was waited for.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._stack.close()


def _run(descriptor: int, errors: IO[bytes], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A keeper's process, which has the other end of the connection as a descriptor."""
    command = f"{_PREPARED}; from thalweg.workers.ray.driver import main; main({descriptor})"
    try:
        # In a session of its own, so that Ctrl-C, which a terminal sends to all of a group, leaves it to the fleet to end it.
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
        raise _KeeperLostError(f"its driver, a process of {sys.executable}, cannot be started: {error.strerror}") from error


def _new_folder() -> RayFolder:
    try:
        return RayFolder.make()
    except RayFolderError as error:
        raise _KeeperLostError(str(error)) from error


def _environment(config: FleetConfig, folder: Path | None) -> dict[str, str]:
    """A keeper's environment. `folder` is where a Ray of its own keeps its files."""
    if folder:
        return ray_environment.for_own_ray(folder)
    return ray_environment.for_cluster(config.ray_token_file, trust_network=config.trust_network)
