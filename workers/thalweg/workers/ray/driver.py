"""A fleet's second process: drives Ray, and keeps as many worker actors for each job as are allotted and the cluster can hold.

It is a process of its own because Ray ends the process that drives it, or lets its calls hang, when the head of its cluster is
gone. The fleet then ends this process and starts another one.
"""

import os
import signal
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

from thalweg.contract.errors import ThalwegError
from thalweg.contract.worker_size import Free, Size
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1.parameter_service_pb2 import Place
from thalweg.workers.ray.actor import WorkerActor
from thalweg.workers.ray.cluster import RayLostError, connect, own_head
from thalweg.workers.ray.deaths import Deaths, death
from thalweg.workers.ray.folder import end_and_remove
from thalweg.workers.ray.messages import Alive, Failed, Hold, Orders
from thalweg.workers.ray.processes import end_with, has_ended

# The seconds between checks for actors that ended and for new nodes, of which Ray does not notify.
_LOOK_SECONDS = 0.25
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 5.0
# Ray's message about an actor whose node has died.
_NODE_DEATH = "its node has died"
_MIN_RESOURCE = 0.0001
# Ray puts the driver's folder first in the workers' Python path. No file can be put in this one, on any machine.
_FOLDER = "/proc/sys/kernel"


@dataclass
class _Actor:
    handle: Any
    answered: Any
    place: Any
    size: Size
    node: str = ""


class RayDriver:
    """The actors on a Ray cluster. `tell` sends messages to the fleet."""

    def __init__(self, ray: Any, orders: Orders, connection: Connection) -> None:
        self._ray = ray
        self._orders = orders
        self._connection = connection
        self._node = ray.get_runtime_context().get_node_id()
        self._head = own_head()
        self._class = ray.remote(WorkerActor)
        self._deaths = Deaths(ray, self._now, connection.send)
        self._actors: dict[str, dict[Any, _Actor]] = defaultdict(dict)
        self._wanted: dict[str, pb.Allotment] = {}
        self._holding = False
        # The CPU slots and the GPUs of each node, and its name.
        self._capacities: dict[str, tuple[int, int]] = {}
        self._names: dict[str, str] = {}
        self._unreachable: tuple[str, ...] = ()
        # The resources that an actor needs besides CPU slots.
        self._resources: dict[str, float] = {}
        self._backoff: dict[str, float] = {}
        self._not_before: dict[str, float] = defaultdict(float)

    def run(self) -> None:
        """Starts, ends and replaces actors until the fleet closes the connection.

        Raises OSError if the fleet is gone, RayLostError, or what Ray raises.
        """
        with suppress(EOFError):
            while True:
                self._look()
                self._report()
                if self._connection.poll(_LOOK_SECONDS):
                    message: Hold | pb.AttendResponse = self._connection.recv()
                    self._holding = isinstance(message, Hold)
                    if not isinstance(message, Hold):
                        self._wanted = {allotment.job_id: allotment for allotment in message.allotments}
                self._collect()
                self._deaths.tell()
                self._reconcile()
        # A fleet that has closed its end still receives.
        self._report()
        self._wanted = {}
        self._reconcile()

    def _report(self) -> None:
        of_nodes = tuple(self._capacities.values())
        slots, names = sum(cpus for cpus, _ in of_nodes), tuple(self._names[node] for node in self._capacities)
        self._connection.send(Alive(slots, tuple(self._capacities), self._running(), self._unreachable, of_nodes, names))

    def _running(self) -> dict[str, tuple[int, int]]:
        """The number of actors of each job, and the slots of each of them."""
        return {job: (len(actors), next(iter(actors.values())).size.slots) for job, actors in self._actors.items() if actors}

    def _look(self) -> None:
        """Finds the cluster's nodes that reach the server, and the numbers of their CPU slots and GPUs."""
        if any(map(has_ended, self._head)):
            raise RayLostError("a process of its head has died")
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        here = next((node["NodeManagerAddress"] for node in nodes if node["NodeID"] == self._node), None)
        if here is None:
            raise RayLostError("this machine's Ray node has died")
        if self._orders.server.address.is_loopback:
            self._unreachable = tuple(sorted({node["NodeManagerAddress"] for node in nodes} - {here}))
            nodes = [node for node in nodes if node["NodeManagerAddress"] == here]
            # A resource that Ray gives every node.
            self._resources = {f"node:{here}": _MIN_RESOURCE}
        has = {node["NodeID"]: node["Resources"] for node in nodes}
        self._capacities = {node: (int(each.get("CPU", 0)), int(each.get("GPU", 0))) for node, each in has.items()}
        self._names |= {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}

    def _collect(self) -> None:
        """Finds the actors that have ended."""
        for job_id, actors in self._actors.items():
            done, _ = self._ray.wait(list(actors), num_returns=len(actors), timeout=0) if actors else ([], [])
            if not done:
                continue
            # If some workers of a job work, the job itself does not keep workers from starting.
            works = any(self._now(actor.answered) for actor in actors.values())
            for reference in done:
                actor = actors.pop(reference)
                exited = self._exited(reference, actor)
                self._ray.kill(actor.handle)
                if exited and job_id in self._wanted:
                    exited.job_id = job_id
                    exited.place.CopyFrom(self._place(actor))
                    _, _, log = self._now(actor.place) or ("", "", "")
                    # Of code of the job's that ended its process.
                    if exited.died and self._orders.allow_code and log:
                        self._deaths.add(exited, log)
                    else:
                        self._connection.send(exited)
            backoff = FIRST_BACKOFF if works else 2 * self._backoff.get(job_id, FIRST_BACKOFF / 2)
            self._backoff[job_id] = min(backoff, MAX_BACKOFF)
            self._not_before[job_id] = monotonic() + self._backoff[job_id]

    def _now(self, reference: Any) -> Any:
        """The value that an actor's method has returned, None if it has not; the actor may have ended since."""
        done, _ = self._ray.wait([reference], timeout=0)
        try:
            return self._ray.get(reference) if done else None
        except self._ray.exceptions.RayError:
            return None

    def _place(self, actor: _Actor) -> Place:
        """The node on which an actor runs or ran, if that is known."""
        node, name, _ = self._now(actor.place) or (actor.node, self._names.get(actor.node, ""), "")
        return Place(fleet=self._orders.fleet_id, node=node, name=name)

    def _exited(self, reference: Any, actor: _Actor) -> pb.WorkerExited | None:
        """The reason why an actor ended; None if the server said goodbye."""
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ThalwegError):
                # The server is gone, or has refused the worker, and knows the reason. Or the node lacks what a connection takes.
                cause = pb.WorkerExited.CAUSE_NODE if error.cause.reason == "LOCAL" else pb.WorkerExited.CAUSE_UNSPECIFIED
                return pb.WorkerExited(problem=str(error.cause), cause=cause)
            exited = pb.WorkerExited(problem=str(error).strip().rpartition("\n")[2], cause=pb.WorkerExited.CAUSE_NODE)
        except self._ray.exceptions.RuntimeEnvSetupError as error:
            return pb.WorkerExited(problem=_why_not_installed(str(error)), cause=pb.WorkerExited.CAUSE_NODE)
        except self._ray.exceptions.RayError as error:
            text = str(error).strip()
            if _NODE_DEATH in text:
                return pb.WorkerExited(problem="its Ray node has died")
            exited = death(text)
        else:
            return None
        if self._now(actor.answered):
            exited.cause = pb.WorkerExited.CAUSE_UNSPECIFIED
        return exited

    def _reconcile(self) -> None:
        """Starts or ends actors until there are as many as are allotted."""
        for job_id in list(self._actors):
            allotment = self._wanted.get(job_id)
            wanted = allotment.workers if allotment else 0
            actors = self._actors[job_id]
            while len(actors) > wanted and not (allotment and allotment.letting_go):
                self._ray.kill(actors.pop(self._surplus(actors, set(allotment.avoid if allotment else ()))).handle)
            if not allotment:
                del self._actors[job_id]
                self._backoff.pop(job_id, None)
                self._not_before.pop(job_id, None)
        for job_id, allotment in {} if self._holding else self._wanted.items():
            actors = self._actors[job_id]
            while len(actors) < allotment.workers and monotonic() >= self._not_before[job_id]:
                if not self._start(actors, job_id, allotment):
                    break

    def _surplus(self, actors: dict[Any, _Actor], avoid: set[str]) -> Any:
        """The actor that is to end if there are too many: on a node to avoid, or one that has done nothing yet, or the last."""
        started = list(reversed(actors))
        avoided = [each for each in started if avoid and self._place(actors[each]).node in avoid]
        return next((each for each in avoided or started if not self._now(actors[each].answered)), (avoided or started)[0])

    def _start(self, actors: dict[Any, _Actor], job_id: str, allotment: pb.Allotment) -> bool:
        """Starts an actor, on a node of Ray's choice if all will do. False if none has room."""
        size, node = Size(allotment.slots_per_worker, allotment.gpus_per_worker), ""
        # Nothing is installed on the server's word alone.
        packages = list(allotment.requirements) if self._orders.allow_requirements else []
        strategy: Any = "SPREAD"
        # Ray does not say on which node packages could not be installed.
        if allotment.avoid or packages:
            node = self._roomiest(set(allotment.avoid), size)
            if not node:
                return False
            strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": size.slots, "resources": self._resources, "scheduling_strategy": strategy}
        options |= {"max_restarts": 0, "max_concurrency": 3}
        if size.gpus:
            options |= {"num_gpus": size.gpus}
        if packages:
            options |= {"runtime_env": {"pip": packages}}
        handle = self._class.options(**options).remote()
        orders = self._orders
        allowed = orders.allow_code, orders.data
        # Workers run code of the job's author, which must not get the fleet's own token.
        server = orders.server._replace(token=allotment.token or None)
        reference = handle.work.remote(server, job_id, orders.fleet, orders.fleet_id, *allowed)
        actors[reference] = _Actor(handle, handle.answered.remote(), handle.place.remote(), size, node)
        return True

    def _roomiest(self, avoid: set[str], size: Size) -> str:
        """The node with the most CPU slots that this fleet does not use, of those that have room for a worker of a size.

        Empty if there is none.
        """
        free = {node: Free(*has) for node, has in self._capacities.items() if node not in avoid}
        for actor in (actor for actors in self._actors.values() for actor in actors.values()):
            actor.node = actor.node or self._place(actor).node
            if actor.node in free:
                free[actor.node].take(actor.size)
        return max((node for node in free if free[node].has(size)), key=lambda node: free[node].slots, default="")


def _why_not_installed(text: str) -> str:
    """What Ray says when it cannot install the packages that a job requires, in short: what pip says, if it says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "")
    return f"code.requirements cannot be installed: {said}"


def _end_group(folder: Path | None) -> None:
    """Ends this process with its group, since the fleet, which would do so, is gone."""
    if folder:
        end_and_remove(folder)
    os.killpg(os.getpid(), signal.SIGKILL)


def main(descriptor: int) -> None:
    """Runs the driver of the fleet at the other end of a connection, in the environment that the fleet made.

    The fleet starts it as the leader of a process group, which includes the fleet's own Ray, and ends the group with it.
    """
    connection = Connection(descriptor)
    orders: Orders = connection.recv()
    end_with(orders.parent, lambda: _end_group(orders.folder))
    os.chdir(_FOLDER)
    try:
        import ray  # noqa: PLC0415 - takes a second
        import ray.util.scheduling_strategies  # noqa: PLC0415

        connect(ray, orders)
        RayDriver(ray, orders, connection).run()
    except Exception as error:  # noqa: BLE001 - reported to the fleet; Ray cannot be shut down any more
        try:
            connection.send(Failed(str(error).strip() or type(error).__name__))
        except OSError:
            _end_group(orders.folder)
        os._exit(1)
    ray.shutdown()
