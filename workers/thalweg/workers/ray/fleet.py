"""A Ray fleet: registers with a server, and passes its allotments to the process that drives Ray (`driver_process.py`)."""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from time import monotonic
from typing import Any

import grpc

from thalweg.contract.errors import ThalwegError
from thalweg.contract.release import capacity
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1 import fleet_service_pb2_grpc
from thalweg.workers.ray import environment as ray_environment
from thalweg.workers.ray.config import FleetConfig
from thalweg.workers.ray.driver import FIRST_BACKOFF, MAX_BACKOFF
from thalweg.workers.ray.driver_process import HOW_TO_GIVE, DriverLostError, DriverProcess
from thalweg.workers.ray.messages import Alive, Hold

_log = logging.getLogger(__name__)
# The seconds for Ray to start, which takes long on a busy machine.
_START_SECONDS = 120.0
# A driver that sends nothing for this time hangs in a call of Ray.
_SILENCE_SECONDS = 15.0
# The seconds for workers to finish their tasks before the fleet ends, and between looks whether they have.
_LEAVE_SECONDS, _LOOK_SECONDS = 4.0, 0.05
# The seconds for the end of the driver, then it is killed: those who stop a fleet wait for 10 s as a rule.
_STOP_SECONDS = 4.0
# The seconds for which workers are kept while the server cannot be reached: longer than the wait between two attempts.
_GRACE_SECONDS = 15.0


class FleetError(Exception):
    """The fleet cannot start; the message says why, and what to do."""


class Fleet:
    """A fleet, in threads of its own and a process. If Ray ends, it starts or joins it again."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self._server = config.server
        self._stop = threading.Event()
        # Guards what both threads use: the streams to the server and to the driver, and the first messages on new ones.
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[pb.AttendRequest | None] = queue.SimpleQueue()
        self._id = uuid.uuid4().hex
        self._cluster = Alive(0, ())
        # The time since which the server cannot be reached, while workers are kept; and the driver's last message.
        self._lost_since: float | None = None
        self._orders: pb.AttendResponse | Hold = pb.AttendResponse()
        self._driver: DriverProcess | None = None
        # Whether the fleet is about to end, and whether the server hears it.
        self._leaving = self._connected = False
        self._call: Any = None
        self._threads = [
            threading.Thread(target=self._attend, name="thalweg-attend", daemon=True),
            threading.Thread(target=self._supervise, name="thalweg-fleet", daemon=True),
        ]

    @property
    def gpus(self) -> int:
        """The GPUs of the node that has the most of them."""
        return max((gpus for _, gpus in self._cluster.of_nodes), default=0)

    def start(self, check: Callable[[], object] = lambda: None) -> None:
        """Starts or joins Ray, then registers with the server. Raises FleetError if Ray cannot be used.

        `check` is called several times a second while Ray starts; what it raises ends the start.
        """
        if find_spec("ray") is None:
            raise FleetError("Ray is not installed; install it with: pip install 'thalweg[workers]'")
        where = f"join the Ray cluster at {self.config.ray_address}" if self.config.ray_address else "start Ray"
        has_token = self.config.ray_token_file or self.config.trust_network or ray_environment.has_token()
        if self.config.ray_address and not has_token:
            raise FleetError(f"cannot {where} without its token; {HOW_TO_GIVE}")
        try:
            self._driver = DriverProcess(self.config, self._id)
            self._cluster = self._driver.listen(_START_SECONDS, check)
        except DriverLostError as error:
            self._drop_driver()
            raise FleetError(f"cannot {where}: {error}") from error
        except BaseException:
            # The wait is long: Ray's processes end properly only if the driver ends them.
            self._stop.set()
            self._drop_driver()
            raise
        if self._cluster.unreachable:
            self._drop_driver()
            raise FleetError(
                f"the server's address {self.config.server.address} can be reached from this machine only, but the Ray "
                f"cluster has other machines: {', '.join(self._cluster.unreachable)}; give an address that all of them "
                "reach with --server"
            )
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Has the server let the workers go, each after the task that it has, and waits for that, but not for long."""
        with self._lock:
            self._leaving = True
            self._tell_capacity()
        until = monotonic() + _LEAVE_SECONDS
        while self._connected and self._cluster.running and monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        if self._cluster.running:
            _log.warning("workers had not finished their tasks in %.0f s; the server gives these to others", _LEAVE_SECONDS)

    def stop(self) -> None:
        """Ends the workers and leaves Ray. The fleet's own Ray ends."""
        self._stop.set()
        with self._lock:
            self._outbox.put(None)
            if self._call:
                self._call.cancel()
            if self._driver:
                self._driver.hang_up()
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
                            self._connected = True
                        self._pass_on(response)
                problem = "it ended the connection"
            except grpc.RpcError as error:
                problem = _plain(self._server.translated(error))
            except ThalwegError as error:
                problem = _plain(error)
            finally:
                self._outbox.put(None)
                self._connected = False
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
        """Sends an allotment to the driver, and to the next one, if this one is lost."""
        with self._lock:
            self._lost_since = None
            self._order(allotment)

    def _hold(self) -> None:
        """The server cannot be reached. Workers are kept for a while, since their own streams may still work."""
        with self._lock:
            if self._lost_since is None and self._orders != pb.AttendResponse():
                self._lost_since = monotonic()
                self._order(Hold())

    def _let_go(self) -> None:
        """Ends the workers, if the server could not be reached for a long time."""
        with self._lock:
            if self._lost_since is not None and monotonic() - self._lost_since > _GRACE_SECONDS:
                self._lost_since = None
                self._order(pb.AttendResponse())

    def _order(self, orders: pb.AttendResponse | Hold) -> None:
        self._orders = orders
        if self._driver:
            self._driver.tell(orders)

    def _tell_capacity(self) -> None:
        cluster = self._cluster
        running = [
            pb.Allotment(job_id=job_id, workers=workers, slots_per_worker=slots)
            for job_id, (workers, slots) in cluster.running.items()
        ]
        said = capacity(
            self.config.name,
            cluster.slots,
            fleet=self._id,
            nodes=cluster.nodes,
            of_nodes=cluster.of_nodes,
            names=cluster.names,
            running=running,
            leaving=self._leaving,
            allow_code=self.config.allow_code,
            allow_requirements=self.config.allow_requirements,
        )
        self._outbox.put(pb.AttendRequest(capacity=said))

    def _supervise(self) -> None:
        """Receives from the driver, and starts another one when it is lost, with a backoff between attempts."""
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            try:
                driver = self._driver or self._replace_driver()
                self._set_cluster(driver.listen(_START_SECONDS))
                backoff = FIRST_BACKOFF
                while True:
                    self._heard(driver.listen(_SILENCE_SECONDS))
            except (DriverLostError, OSError) as error:
                problem = str(error)
            self._drop_driver()
            self._set_cluster(Alive(0, ()))
            if not self._stop.is_set():
                _log.warning("Ray is lost: %s; trying again in %.1f s", problem, backoff)
            self._stop.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)
        self._drop_driver()

    def _replace_driver(self) -> DriverProcess:
        with self._lock:
            self._driver = driver = DriverProcess(self.config, self._id)
            driver.tell(self._orders)
            if self._stop.is_set():
                driver.hang_up()
            return driver

    def _drop_driver(self) -> None:
        with self._lock:
            driver, self._driver = self._driver, None
        if driver:
            driver.end(_STOP_SECONDS if self._stop.is_set() else 0)

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
            before = self._cluster
            told, known = ((each.slots, each.nodes, each.of_nodes, each.names) for each in (cluster, before))
            changed = told != known
            self._cluster = cluster
            if changed:
                self._tell_capacity()


def _plain(error: ThalwegError) -> str:
    """The reason why the server cannot be reached, in words."""
    return error.metadata["problem"] if error.reason == "UNREACHABLE" else str(error)
