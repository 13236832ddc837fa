"""FleetService: fleets attend, and are told how many workers each job gets from them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from thalweg.contract.text import MAX_FLEET_NAME, MAX_PROBLEM, visible
from thalweg.server import validation
from thalweg.server.fleets import AttendingFleet
from thalweg.server.jobs import Jobs
from thalweg.server.services.guard import errors
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1 import fleet_service_pb2_grpc

_log = logging.getLogger(__name__)
_SLOTS = pb.Capacity.DESCRIPTOR.fields_by_name["slots"]


class FleetService(fleet_service_pb2_grpc.FleetServiceServicer):
    """Translates fleets' streams."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def Attend(
        self, request_iterator: AsyncIterator[pb.AttendRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.AttendResponse]:
        async with errors(context):
            fleet = AttendingFleet()
            listener = asyncio.create_task(self._listen(fleet, request_iterator))
            listener.add_done_callback(lambda _: fleet.changed.set())
            self._jobs.fleets.attending.append(fleet)
            try:
                while True:
                    await fleet.changed.wait()
                    fleet.changed.clear()
                    if listener.done():
                        await listener
                        return
                    yield fleet.message()
            finally:
                listener.cancel()
                self._jobs.fleets.attending.remove(fleet)
                self._jobs.allot()

    async def _listen(self, fleet: AttendingFleet, requests: AsyncIterator[pb.AttendRequest]) -> None:
        async for request in requests:
            if request.HasField("capacity"):
                validation.check_value(_SLOTS, request.capacity.slots, "capacity.slots")
                fleet.name, fleet.slots = visible(request.capacity.name, MAX_FLEET_NAME), request.capacity.slots
                fleet.changed.set()
                self._jobs.allot()
            elif request.HasField("worker_exited"):
                exited = request.worker_exited
                run = self._jobs.run(exited.job_id)
                if run:
                    problem = visible(exited.problem, MAX_PROBLEM)
                    run.telemetry.notice(f"a worker of fleet {fleet.name} ended and is replaced: {problem}")
                    if exited.crashed:
                        run.worker_crashed(problem)
