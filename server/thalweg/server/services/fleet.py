"""FleetService: fleets attend, and are sent the number of workers to run for each job."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from thalweg.contract.errors import ThalwegError
from thalweg.contract.release import check_protocol
from thalweg.contract.text import MAX_FLEET_NAME, MAX_PROBLEM, MAX_WORKER_NAME, visible
from thalweg.server import validation
from thalweg.server.deciding.allotment.attending import AttendingFleet
from thalweg.server.deciding.allotment.room import Node
from thalweg.server.driving.jobs import Jobs
from thalweg.server.services.guarding.guard import end, errors
from thalweg.server.streams import wire
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1 import fleet_service_pb2_grpc

_log = logging.getLogger(__name__)
_SLOTS = pb.Capacity.DESCRIPTOR.fields_by_name["slots"]
_OF_NODE = pb.NodeCapacity.DESCRIPTOR.fields_by_name


class FleetService(fleet_service_pb2_grpc.FleetServiceServicer):
    """Translates fleets' streams. `token_of` gives the token of a job's workers."""

    def __init__(self, jobs: Jobs, token_of: Callable[[str], str | None]) -> None:
        self._jobs = jobs
        self._token_of = token_of

    async def Attend(
        self, request_iterator: AsyncIterator[pb.AttendRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.AttendResponse]:
        async with errors(context):
            fleet = AttendingFleet(since=time.time())
            listener = asyncio.create_task(self._listen(fleet, request_iterator))
            listener.add_done_callback(lambda _: fleet.changed.set())
            self._jobs.places.fleets.add(fleet)
            try:
                while True:
                    await fleet.changed.wait()
                    fleet.changed.clear()
                    if listener.done():
                        await listener
                        return
                    if fleet.superseded:
                        return
                    yield fleet.message(self._token_of)
            finally:
                self._jobs.places.fleets.remove(fleet)
                self._jobs.places.allot()
                await end(listener)

    async def _listen(self, fleet: AttendingFleet, requests: AsyncIterator[pb.AttendRequest]) -> None:
        async for request in requests:
            if request.HasField("capacity"):
                self._capacity(fleet, request.capacity)
            elif request.HasField("worker_exited"):
                self._worker_exited(fleet, request.worker_exited)

    def _capacity(self, fleet: AttendingFleet, capacity: pb.Capacity) -> None:
        check_protocol("fleet", capacity.protocol, capacity.release)
        validation.check_value(_SLOTS, capacity.slots, "capacity.slots")
        fleet.name, fleet.slots = visible(capacity.name, MAX_FLEET_NAME), capacity.slots
        fleet.nodes = frozenset(capacity.nodes)
        for index, node in enumerate(capacity.of_nodes):
            for name, value in (("slots", node.slots), ("gpus", node.gpus)):
                validation.check_value(_OF_NODE[name], value, f"capacity.of_nodes[{index}].{name}")
        fleet.capacities = tuple(Node(node.slots, node.gpus) for node in capacity.of_nodes)
        fleet.node_ids = tuple(visible(node.id, MAX_WORKER_NAME) for node in capacity.of_nodes if node.id)
        if len(fleet.node_ids) not in (0, len(fleet.capacities)):
            raise ThalwegError("PROTOCOL_VIOLATION", {"problem": "a fleet gives ids of some of its nodes and not of others"})
        fleet.names = {each.id: visible(each.name, MAX_WORKER_NAME) for each in capacity.of_nodes if each.id and each.name}
        fleet.allow_code, fleet.allow_requirements = capacity.allow_code, capacity.allow_requirements
        if not fleet.known:
            self._jobs.places.fleets.know(fleet, capacity.id, capacity.running)
        fleet.changed.set()
        if capacity.leaving and not fleet.leaving:
            fleet.leaving = True
            _log.info("fleet %s is about to leave; its workers finish their tasks", fleet.name)
            self._jobs.cluster.let_go("the fleet is stopping")
        self._jobs.places.allot()

    def _worker_exited(self, fleet: AttendingFleet, exited: pb.WorkerExited) -> None:
        run = self._jobs.run(exited.job_id)
        if run is None or not fleet.exited(exited.job_id):
            _log.debug("fleet %s reports the end of a worker that it was not asked to start", fleet.name)
            return
        problem = visible(exited.problem, MAX_PROBLEM)
        place = wire.place_of(exited.place, fleet.name)._replace(fleet=fleet.id)
        if exited.died:
            run.worker_died(place, problem, visible(exited.line, MAX_PROBLEM))
        if exited.cause == pb.WorkerExited.CAUSE_UNSPECIFIED:
            run.telemetry.notice(f"a worker of fleet {fleet.name} ended and will be replaced: {problem}")
            return
        run.worker_exited(place, problem, exited.cause == pb.WorkerExited.CAUSE_KILLED)
