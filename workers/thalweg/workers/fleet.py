"""A Ray fleet: attends on a server, and keeps as many worker actors per job as the server allots and the cluster can hold."""

import logging
import os
import platform
import queue
import select
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from thalweg.contract.channel import OPTIONS, Address, authorization
from thalweg.contract.errors import ThalwegError, from_rpc_error
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1 import fleet_service_pb2_grpc

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

_log = logging.getLogger(__name__)
# How often the fleet looks whether actors ended or nodes came: Ray tells neither by itself.
_LOOK_SECONDS = 0.25
_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 15.0
# An actor that lived so long was started well.
_HEALTHY_SECONDS = 30.0
# The fleet keeps nothing in Ray's object store; this is the least that Ray allows.
_OBJECT_STORE_BYTES = 80 << 20


class FleetError(Exception):
    """The fleet cannot start; the message says why and what would do."""


@dataclass(frozen=True)
class FleetConfig:
    """How a fleet runs: on the Ray cluster at `ray_address`, or, if that is None, on a Ray of its own with `slots` CPU slots."""

    server: Address
    token: str | None = None
    ray_address: str | None = None
    slots: int | None = None
    name: str = field(default_factory=platform.node)


@dataclass
class _Actor:
    handle: Any
    started: float


class Fleet:
    """A fleet in threads of its own. Start it in the main thread: a Ray of its own ends with the thread that started it."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self._stop = threading.Event()
        self._inbox: queue.SimpleQueue[pb.AttendResponse | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[pb.AttendRequest | None] = queue.SimpleQueue()
        self._actors: dict[str, dict[Any, _Actor]] = defaultdict(dict)
        self._wanted: dict[str, pb.Allotment] = {}
        self._slots = -1
        self._backoff: dict[str, float] = {}
        self._not_before: dict[str, float] = defaultdict(float)
        self._threads = [
            threading.Thread(target=self._attend, name="thalweg-attend", daemon=True),
            threading.Thread(target=self._keep, name="thalweg-fleet", daemon=True),
        ]
        self._call: Any = None

    def start(self) -> None:
        """Starts or joins Ray, then attends. Raises FleetError if Ray cannot be had."""
        self._ray = _import_ray()
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": "thalweg"}
        if self.config.ray_address:
            options["address"] = self.config.ray_address
        else:
            slots = self.config.slots or os.cpu_count() or 1
            options |= {"num_cpus": slots, "num_gpus": 0, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            self._ray.init(**options)
        except Exception as error:
            where = f"join the Ray cluster at {self.config.ray_address}" if self.config.ray_address else "start Ray"
            raise FleetError(f"cannot {where}: {error}") from error
        self._actor_class = self._ray.remote(_WorkerActor)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the workers and leaves Ray; a Ray of its own ends."""
        self._stop.set()
        self._inbox.put(None)
        self._outbox.put(None)
        if self._call:
            self._call.cancel()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._ray.shutdown()

    def _attend(self) -> None:
        """Keeps a stream to the server, with a backoff between attempts."""
        backoff = _FIRST_BACKOFF
        while not self._stop.is_set():
            self._outbox = queue.SimpleQueue()
            try:
                with grpc.insecure_channel(str(self.config.server), options=list(OPTIONS)) as channel:
                    self._slots = -1
                    stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
                    self._call = stub.Attend(self._requests(), metadata=authorization(self.config.token))
                    for response in self._call:
                        backoff = _FIRST_BACKOFF
                        self._inbox.put(response)
                problem = "the server ended the stream"
            except grpc.RpcError as error:
                problem = str(from_rpc_error(error, str(self.config.server)))
            finally:
                self._outbox.put(None)
            if not self._stop.is_set():
                _log.warning("%s; trying again in %.1f s", problem, backoff)
                self._inbox.put(pb.AttendResponse())
            self._stop.wait(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    def _requests(self) -> Iterator[pb.AttendRequest]:
        yield from iter(self._outbox.get, None)

    def _keep(self) -> None:
        """Owns the actors: starts, ends and replaces them."""
        while not self._stop.is_set():
            with suppress(queue.Empty):
                response = self._inbox.get(timeout=_LOOK_SECONDS)
                while response is not None:
                    self._wanted = {allotment.job_id: allotment for allotment in response.allotments}
                    response = self._inbox.get_nowait()
            if self._stop.is_set():
                break
            self._tell_capacity()
            self._collect()
            self._reconcile()
        self._wanted = {}
        self._reconcile()

    def _tell_capacity(self) -> None:
        slots = int(self._ray.cluster_resources().get("CPU", 0))
        if slots != self._slots:
            self._slots = slots
            self._outbox.put(pb.AttendRequest(capacity=pb.Capacity(name=self.config.name, slots=slots)))

    def _collect(self) -> None:
        """Looks which actors have ended."""
        for job_id, actors in self._actors.items():
            done, _ = self._ray.wait(list(actors), num_returns=len(actors), timeout=0) if actors else ([], [])
            young = False
            for reference in done:
                actor = actors.pop(reference)
                problem = self._outcome(reference)
                self._ray.kill(actor.handle)
                if problem is None or job_id not in self._wanted:
                    continue
                young |= time.monotonic() - actor.started <= _HEALTHY_SECONDS
                _log.warning("a worker of job %s ended: %s", job_id, problem)
                exited = pb.WorkerExited(job_id=job_id, problem=problem)
                self._outbox.put(pb.AttendRequest(worker_exited=exited))
            if done:
                backoff = 2 * self._backoff.get(job_id, _FIRST_BACKOFF / 2) if young else _FIRST_BACKOFF
                self._backoff[job_id] = min(backoff, _LONGEST_BACKOFF)
                self._not_before[job_id] = time.monotonic() + self._backoff[job_id]

    def _outcome(self, reference: Any) -> str | None:
        """Why an actor ended; None if the server let it go."""
        try:
            self._ray.get(reference)
        except ThalwegError as error:
            return str(error)
        except self._ray.exceptions.RayTaskError as error:
            return str(error.cause) if isinstance(error.cause, ThalwegError) else str(error).strip().rpartition("\n")[2]
        except self._ray.exceptions.RayError as error:
            return f"its process died: {str(error).strip().partition(chr(10))[0]}"
        return None

    def _reconcile(self) -> None:
        """Makes the actors as many as are wanted."""
        for job_id in list(self._actors):
            allotment = self._wanted.get(job_id)
            wanted = allotment.workers if allotment else 0
            actors = self._actors[job_id]
            while len(actors) > wanted:
                _, actor = actors.popitem()
                self._ray.kill(actor.handle)
            if not allotment:
                del self._actors[job_id]
                self._backoff.pop(job_id, None)
                self._not_before.pop(job_id, None)
        for job_id, allotment in self._wanted.items():
            actors = self._actors[job_id]
            while len(actors) < allotment.workers and time.monotonic() >= self._not_before[job_id]:
                handle = self._actor_class.options(
                    num_cpus=allotment.slots_per_worker, scheduling_strategy="SPREAD", max_restarts=0
                ).remote()
                reference = handle.work.remote(self.config.server, self.config.token, job_id, self.config.name)
                actors[reference] = _Actor(handle, time.monotonic())


class _WorkerActor:
    """The Ray actor around a worker."""

    def work(self, server: Address, token: str | None, job_id: str, fleet: str) -> str:
        """Works until the server says goodbye."""
        from thalweg.workers.worker import work  # noqa: PLC0415 - imported where the actor runs

        threading.Thread(target=_end_with, args=(os.getppid(),), name="thalweg-parent", daemon=True).start()
        return work(server, token, job_id, f"{fleet}/{platform.node()}/{os.getpid()}")


def _end_with(parent: int) -> None:
    """Ends this process as soon as its parent, the Ray node that started it, is gone.

    Ray looks for that too, but takes a node that has died and was not waited for, as in a container without an init, for alive.
    """
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(parent)], [], [])
    os._exit(1)


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - takes a second, and may be missing
    except ImportError as error:
        raise FleetError("Ray is not installed; install it with: pip install 'thalweg[workers]'") from error
    return ray
