"""What operators do with fleets and nodes, and the graceful end of a server."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable

from thalweg.contract.errors import ThalwegError
from thalweg.contract.worker_size import size_of
from thalweg.server.deciding.allotment.attending import AttendingFleet
from thalweg.server.deciding.allotment.closures import Closed, Closure, Closures, find
from thalweg.server.deciding.allotment.room import Node
from thalweg.server.deciding.values import Place
from thalweg.server.driving.answers import Answers
from thalweg.server.driving.lifecycle.lives import Lives
from thalweg.server.storage.journal import Journal
from thalweg.v1 import cluster_service_pb2 as pb

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.02
_NOT_RECORDED = "Nothing was changed."


class Cluster:
    """The fleets of one server, for operators. Belongs to its event loop.

    `draining` is set when the server is to end, `drained` when its workers have left.
    """

    def __init__(self, journal: Journal, answers: Answers, lives: Lives) -> None:
        self._journal = journal
        self._answers = answers
        self._lives = lives
        self._fleets = lives.places.fleets
        self._ending: asyncio.Task[None] | None = None
        self.draining = asyncio.Event()
        self.drained = asyncio.Event()

    async def start(self) -> None:
        """Reads what is closed. Raises OSError or sqlite3.Error if it cannot be read."""
        self._fleets.closures = Closures(await self._journal.run(self._journal.storage.cordons))

    def close(self) -> None:
        """Waits for nobody any more."""
        if self._ending:
            self._ending.cancel()

    async def cordon(self, target: str) -> Closed:
        """Starts no more workers at a target. Raises ThalwegError if there is no such fleet or node."""
        return await self._put(target, Closure.CORDONED)

    async def drain(self, target: str, at_once: bool) -> Closed:
        """Lets the workers at a target go as well. Raises ThalwegError if there is no such fleet or node."""
        closed = await self._put(target, Closure.DRAINED)
        self.let_go(f"{_named(closed.place)} is being drained", at_once)
        return closed

    async def uncordon(self, target: str) -> Closed:
        """Lets a target have workers again. Raises ThalwegError if it is not closed."""
        place = find(target, [each.place for each in self._fleets.closures.all])
        await self._write(lambda: self._journal.storage.remove_cordon(*place))
        closed = self._fleets.closures.remove(place) or Closed(*place, Closure.OPEN, 0.0)
        _log.info("%s gets workers again", _named(place))
        self._lives.places.allot()
        return closed

    async def _put(self, target: str, closure: Closure) -> Closed:
        closed = Closed(*find(target, self._fleets.places), closure, time.time())
        await self._write(lambda: self._journal.storage.put_cordon(closed))
        self._fleets.closures.put(closed)
        _log.info("%s gets no more workers: it is %s", _named(closed.place), closure.name.lower())
        self._lives.places.allot()
        return closed

    async def _write(self, act: Callable[[], None]) -> None:
        try:
            await asyncio.shield(self._answers.begin(self._journal.run(act)))
        except (sqlite3.Error, OSError) as error:
            raise self._answers.refusal(error, _NOT_RECORDED) from error

    def let_go(self, reason: str, at_once: bool = False) -> None:
        """Lets the workers go at places that are drained: after the tasks that they have, or `at_once`."""
        for run in self._lives.living():
            run.let_go(lambda place: self._fleets.closure_at(place) is Closure.DRAINED, reason, at_once)

    def refusal(self, place: Place) -> str:
        """Why no worker may begin at a place; empty if it may."""
        closure = self._fleets.closure_at(place)
        return "" if closure is Closure.OPEN else f"no workers are started here: it is {closure.name.lower()}"

    def check_open(self) -> None:
        """Raises ThalwegError if the server is about to end."""
        if self.draining.is_set():
            raise ThalwegError("DRAINING")

    def end(self, seconds: float) -> None:
        """Has the server end when the workers have finished their tasks, after some seconds at the latest."""
        if self.draining.is_set():
            return
        _log.info("draining: no new jobs and no new tasks; workers have %g s to finish those that they have", seconds)
        self.draining.set()
        self._fleets.closing = True
        self.let_go("the server is being drained")
        self._lives.places.allot()
        self._ending = asyncio.create_task(self._wait(seconds))

    async def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := sum(len(run.connected) for run in self._lives.living())) and time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
        if left:
            _log.warning("draining: the tasks of %d workers took too long; they are repeated after the next start", left)
        else:
            _log.info("draining: all workers have finished their tasks")
        self.drained.set()

    def list(self) -> pb.ListFleetsResponse:
        """The fleets, their nodes and workers, and what is closed."""
        fleets = [self._fleet(fleet) for fleet in self._fleets.attending if fleet.known]
        cordons = [message_of(each) for each in self._fleets.closures.all]
        return pb.ListFleetsResponse(fleets=fleets, cordons=cordons, draining=self.draining.is_set())

    def _fleet(self, fleet: AttendingFleet) -> pb.Fleet:
        view, runs = self._fleets.view(fleet), self._lives.living()
        # Workers may be on nodes that the fleet does not report, or no longer.
        told = dict(zip(fleet.node_ids, fleet.capacities, strict=True))
        nodes = {
            node: pb.FleetNode(
                name=fleet.names.get(node, ""),
                id=node,
                slots=has.slots,
                gpus=has.gpus,
                closure=pb.Closure.ValueType(view.by_node.get(node, Closure.OPEN)),
            )
            for node, has in told.items()
        }
        for run in runs:
            size = size_of(run.job.spec)
            for connection, since in run.connected:
                if connection.place.fleet != fleet.id or not fleet.id:
                    continue
                node = connection.place.node
                if node not in nodes:
                    nodes[node] = pb.FleetNode(name=connection.place.name, id=node, slots=Node(0).slots)
                worker = nodes[node].workers.add(name=connection.name, job_id=run.job.id, slots=size.slots, gpus=size.gpus)
                worker.since.FromMilliseconds(int(since * 1e3))
        found = pb.Fleet(name=fleet.name, id=fleet.id, slots=fleet.slots, nodes=nodes.values(), starting=fleet.starting(runs))
        found.closure = pb.Closure.ValueType(view.closure)
        found.since.FromMilliseconds(int(fleet.since * 1e3))
        return found


def message_of(closed: Closed) -> pb.Cordon:
    """What is closed, as a message."""
    cordon = pb.Cordon(fleet=closed.fleet, node=closed.node, closure=pb.Closure.ValueType(closed.closure))
    cordon.since.FromMilliseconds(int(closed.since * 1e3))
    return cordon


def _named(place: tuple[str, str]) -> str:
    fleet, node = place
    return f"node {fleet}/{node}" if node else f"fleet {fleet}"
