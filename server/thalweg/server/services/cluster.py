"""ClusterService: what operators ask for."""

from typing import Any, TypeAlias

import grpc

from thalweg.server import validation
from thalweg.server.driving.cluster import message_of
from thalweg.server.driving.jobs import Jobs
from thalweg.server.services.guarding.guard import errors
from thalweg.v1 import cluster_service_pb2 as pb
from thalweg.v1 import cluster_service_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_SECONDS = pb.DrainServerRequest.DESCRIPTOR.fields_by_name["seconds"]


class ClusterService(cluster_service_pb2_grpc.ClusterServiceServicer):
    """Translates operators' calls."""

    def __init__(self, jobs: Jobs) -> None:
        self._cluster = jobs.cluster

    async def ListFleets(self, _: pb.ListFleetsRequest, context: Context) -> pb.ListFleetsResponse:
        async with errors(context):
            return self._cluster.list()

    async def Cordon(self, request: pb.CordonRequest, context: Context) -> pb.CordonResponse:
        async with errors(context):
            return pb.CordonResponse(cordon=message_of(await self._cluster.cordon(_target(request))))

    async def Uncordon(self, request: pb.UncordonRequest, context: Context) -> pb.UncordonResponse:
        async with errors(context):
            return pb.UncordonResponse(cordon=message_of(await self._cluster.uncordon(_target(request))))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        async with errors(context):
            return pb.DrainResponse(cordon=message_of(await self._cluster.drain(_target(request), request.now)))

    async def DrainServer(self, request: pb.DrainServerRequest, context: Context) -> pb.DrainServerResponse:
        async with errors(context):
            validation.check_value(_SECONDS, request.seconds, "seconds")
            self._cluster.end(request.seconds)
            return pb.DrainServerResponse()


def _target(request: pb.CordonRequest | pb.UncordonRequest | pb.DrainRequest) -> str:
    """The target of a request. Raises ThalwegError if it can be none."""
    target = request.target
    validation.check_value(request.DESCRIPTOR.fields_by_name["target"], target, "target")
    return target
