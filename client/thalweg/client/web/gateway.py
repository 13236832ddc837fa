"""The server's API for the page: one channel, on which each call carries the credential of the user for whom it is made."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from thalweg.contract.endpoint import Endpoint, Metadata, authorization
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import (
    access_service_pb2,
    access_service_pb2_grpc,
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    job_pb2,
    training_service_pb2_grpc,
)
from thalweg.v1 import training_service_pb2 as pb

_CALL_SECONDS = 30.0
_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")


class Credential(NamedTuple):
    """As whom a call is made: with a token; with none; or, if `own`, as the process that serves the page."""

    token: str | None = None
    own: bool = False


class _Method(Protocol[_Request, _Response]):
    """A method of the server with one request and one answer."""

    def __call__(
        self, request: _Request, /, *, timeout: float | None = None, metadata: Metadata | None = None
    ) -> grpc.aio.UnaryUnaryCall[_Request, _Response]: ...


class Gateway:
    """The server at an endpoint. Belongs to the page's event loop, in which `open` must be called first.

    All methods raise ThalwegError if the server refuses a call, or cannot be reached.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self._endpoint = endpoint
        self._channel: grpc.aio.Channel
        self._access: access_service_pb2_grpc.AccessServiceAsyncStub
        self._cluster: cluster_service_pb2_grpc.ClusterServiceAsyncStub
        self.stub: training_service_pb2_grpc.TrainingServiceAsyncStub

    def open(self) -> None:
        """Opens the channel, which connects when it is first used."""
        self._channel = self._endpoint.open_aio()
        self.stub = training_service_pb2_grpc.TrainingServiceStub(self._channel)
        self._access = access_service_pb2_grpc.AccessServiceStub(self._channel)
        self._cluster = cluster_service_pb2_grpc.ClusterServiceStub(self._channel)

    async def close(self) -> None:
        """Ends the channel and all calls."""
        await self._channel.close()

    def metadata(self, credential: Credential) -> Metadata:
        """The metadata of a call that is made now."""
        return self._endpoint.metadata if credential.own else authorization(credential.token)

    async def call(self, credential: Credential, method: _Method[_Request, _Response], request: _Request) -> _Response:
        """Makes a call with one answer."""
        try:
            return await method(request, metadata=self.metadata(credential), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self.translated(error) from error

    def translated(self, error: grpc.aio.AioRpcError) -> ThalwegError:
        """The error that gRPC's exception stands for."""
        return self._endpoint.translated(error)

    async def caller(self, credential: Credential) -> access_service_pb2.GetCallerResponse:
        """Whose credential it is, and what the server lets it do."""
        return await self.call(credential, self._access.GetCaller, access_service_pb2.GetCallerRequest())

    async def info(self, credential: Credential) -> pb.GetServerInfoResponse:
        """A description of the server."""
        return await self.call(credential, self.stub.GetServerInfo, pb.GetServerInfoRequest())

    async def job(self, credential: Credential, job_id: str) -> job_pb2.Job:
        """One job."""
        return (await self.call(credential, self.stub.GetJob, pb.GetJobRequest(job_id=job_id))).job

    async def jobs(self, credential: Credential, page_size: int, page_token: str = "") -> pb.ListJobsResponse:
        """A page of the jobs, the newest first."""
        return await self.call(credential, self.stub.ListJobs, pb.ListJobsRequest(page_size=page_size, page_token=page_token))

    async def workers(self, credential: Credential, job_id: str) -> pb.ListWorkersResponse | None:
        """The workers of a job; None if the server is an earlier release, which does not tell."""
        try:
            return await self.call(credential, self.stub.ListWorkers, pb.ListWorkersRequest(job_id=job_id))
        except ThalwegError as error:
            if _code_of(error) is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise

    async def fleets(self, credential: Credential) -> cluster_service_pb2.ListFleetsResponse | None:
        """The fleets with their nodes; None if the server is an earlier release, or does not tell the credential's owner."""
        try:
            return await self.call(credential, self._cluster.ListFleets, cluster_service_pb2.ListFleetsRequest())
        except ThalwegError as error:
            if _code_of(error) in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED):
                return None
            raise

    async def watch(self, credential: Credential, job_id: str, after: int, until_now: bool = False) -> AsyncIterator[pb.Event]:
        """The events of a job after a number: those already recorded, then new ones unless `until_now`, until it has ended."""
        request = pb.WatchJobRequest(job_id=job_id, after_sequence=after, until_now=until_now)
        call = self.stub.WatchJob(request, metadata=self.metadata(credential))
        try:
            async for response in call:
                yield response.event
        except grpc.aio.AioRpcError as error:
            raise self.translated(error) from error
        finally:
            call.cancel()

    async def parameters(self, credential: Credential, job_id: str) -> AsyncIterator[pb.DownloadParametersResponse]:
        """The parameters of a job: a header, then their bytes."""
        call = self.stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job_id), metadata=self.metadata(credential))
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self.translated(error) from error
        finally:
            call.cancel()


def _code_of(error: ThalwegError) -> grpc.StatusCode:
    """The code with which the call ended that raised an error."""
    cause = error.__cause__
    return cause.code() if isinstance(cause, grpc.aio.AioRpcError) else error.code
