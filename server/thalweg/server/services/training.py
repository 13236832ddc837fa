"""TrainingService: what clients ask for."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc

from thalweg.contract.endpoint import CHUNK_BYTES
from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.manifests import SHA256
from thalweg.contract.text import MAX_ADDRESS, visible
from thalweg.server.access.principal import caller
from thalweg.server.driving.jobs import Jobs
from thalweg.server.services.guarding.guard import errors
from thalweg.server.services.guarding.permits import Permits
from thalweg.server.services.guarding.quotas import Quotas
from thalweg.server.services.guarding.stalling import write
from thalweg.server.services.uploads import Uploading
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1 import training_service_pb2_grpc

_log = logging.getLogger(__name__)
# What is not a job's id is not logged at length.
_MAX_ID = 63
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class TrainingService(training_service_pb2_grpc.TrainingServiceServicer):
    """Translates clients' calls."""

    def __init__(self, jobs: Jobs, quotas: Quotas, max_upload_bytes: int, local_workers: bool = False) -> None:
        self._quotas = quotas
        self._local_workers = local_workers
        self._jobs = jobs
        self._max_upload_bytes = max_upload_bytes
        self._permits = Permits(jobs)
        self._uploading = Uploading(jobs)

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        async with errors(context):
            async with self._quotas.new_job(request):
                job = await self._jobs.create(request, caller().principal)
            caller().act.about["job_id"] = job.id
            _log.info("job %s: submitted by %s", job.id, _caller(context))
            return pb.CreateJobResponse(job=job)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        async with errors(context):
            return pb.GetJobResponse(job=self._permits.shown(await self._jobs.queries.get(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        async with errors(context):
            jobs, token = await self._jobs.queries.list(request.page_size, request.page_token, self._permits.reader())
            return pb.ListJobsResponse(jobs=map(self._permits.shown, jobs), next_page_token=token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        async with errors(context):
            _log.info("job %s: cancellation asked for by %s", visible(request.job_id, _MAX_ID), _caller(context))
            return pb.CancelJobResponse(job=await self._jobs.cancel(request.job_id))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Context) -> pb.DeleteJobResponse:
        async with errors(context):
            await self._jobs.delete(request.job_id)
            _log.info("job %s: deleted by %s", request.job_id, _caller(context))
            return pb.DeleteJobResponse()

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Context) -> pb.ResumeJobResponse:
        async with errors(context):
            max_seconds = request.max_seconds if request.HasField("max_seconds") else None
            async with self._quotas.more_workers(request.job_id):
                job = await self._jobs.resume(request.job_id, max_seconds)
            _log.info("job %s: resumed by %s", job.id, _caller(context))
            return pb.ResumeJobResponse(job=job)

    async def ScaleJob(self, request: pb.ScaleJobRequest, context: Context) -> pb.ScaleJobResponse:
        async with errors(context):
            priority = request.priority if request.HasField("priority") else None
            workers = request.workers if request.HasField("workers") or priority is None else None
            async with self._quotas.more_workers(request.job_id, workers or 0):
                job = await self._jobs.scale(request.job_id, workers, priority)
            if workers is not None:
                _log.info("job %s: scaled to %d workers by %s", job.id, workers, _caller(context))
            if priority is not None:
                _log.info("job %s: priority %d by %s", job.id, priority, _caller(context))
            return pb.ScaleJobResponse(job=job, note=self._jobs.places.shortage_of_slots(job))

    async def ShareJob(self, request: pb.ShareJobRequest, context: Context) -> pb.ShareJobResponse:
        async with errors(context):
            job = await self._jobs.share(request.job_id, request.shared)
            _log.info("job %s: %s by %s", job.id, "shared" if request.shared else "no longer shared", _caller(context))
            return pb.ShareJobResponse(job=job)

    async def KeepJob(self, request: pb.KeepJobRequest, context: Context) -> pb.KeepJobResponse:
        async with errors(context):
            job = await self._jobs.keep(request.job_id, request.kept)
            _log.info("job %s: %s by %s", job.id, "kept" if request.kept else "no longer kept", _caller(context))
            return pb.KeepJobResponse(job=job)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        async with errors(context):
            async for event in self._jobs.queries.watch(request.job_id, request.after_sequence, request.until_now):
                yield pb.WatchJobResponse(event=self._permits.shown_event(event))

    async def GetStory(self, request: pb.GetStoryRequest, context: Context) -> pb.GetStoryResponse:
        async with errors(context):
            return pb.GetStoryResponse(entries=await self._jobs.queries.story(request.job_id))

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        async with errors(context):
            return await self._jobs.queries.workers(request.job_id)

    # Coroutines, and no generators: a write that takes too long can be given up.
    async def DownloadParameters(  # type: ignore[override]
        self, request: pb.DownloadParametersRequest, context: Context
    ) -> None:
        async with errors(context):
            download = await self._jobs.queries.parameters(request.job_id)
            await write(context, pb.DownloadParametersResponse(header=download.header))
            for piece in download.pieces():
                await write(context, pb.DownloadParametersResponse(data=await asyncio.to_thread(bytes, piece)))

    async def DownloadTrajectory(  # type: ignore[override]
        self, request: pb.DownloadTrajectoryRequest, context: Context
    ) -> None:
        async with errors(context):
            download = await self._jobs.queries.trajectory(request.job_id)
            await write(context, pb.DownloadTrajectoryResponse(header=download.header))
            for piece in download.pieces():
                await write(context, pb.DownloadTrajectoryResponse(data=await asyncio.to_thread(bytes, piece)))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        async with errors(context):
            if not re.fullmatch(SHA256, request.sha256):
                raise invalid(Violation("sha256", "must be a SHA-256 in hexadecimal"))
            return await self._uploading.state(request.sha256, await self._permits.may_read(request.sha256))

    async def UploadData(self, request_iterator: AsyncIterator[pb.UploadDataRequest], context: Context) -> pb.UploadDataResponse:
        async with errors(context):
            first = await anext(aiter(request_iterator), pb.UploadDataRequest())
            header = first.header
            if not re.fullmatch(SHA256, header.sha256):
                raise invalid(Violation("header.sha256", "must be a SHA-256 in hexadecimal, and come first"))
            caller().act.about["sha256"] = header.sha256
            if header.size > self._max_upload_bytes:
                raise ThalwegError("TOO_LARGE", {"thing": "the file", "limit": f"{self._max_upload_bytes:,} bytes"})
            readable = await self._permits.may_read(header.sha256)
            if not (readable and await asyncio.to_thread(self._jobs.storage.uploads.whole, header.sha256)):
                async with self._quotas.upload(header.size):
                    await self._uploading.receive(header, request_iterator)
            await self._permits.has_uploaded(header.sha256)
            return pb.UploadDataResponse(sha256=header.sha256)

    async def DownloadData(  # type: ignore[override]
        self, request: pb.DownloadDataRequest, context: Context
    ) -> None:
        async with errors(context):
            uploads, start = self._jobs.storage.uploads, 0
            if not (re.fullmatch(SHA256, request.sha256) and await self._permits.may_read(request.sha256)):
                raise ThalwegError("DATA_NOT_FOUND", {"sha256": request.sha256})
            part = await self._read(request.sha256, start)
            local = request.in_place and self._local_workers
            if part is not None and local and (path := uploads.in_place(request.sha256)):
                await write(context, pb.DownloadDataResponse(path=str(path)))
                return
            while part:
                await write(context, pb.DownloadDataResponse(data=part))
                start += len(part)
                part = await self._read(request.sha256, start)
            if part is None:
                raise ThalwegError("DATA_NOT_FOUND", {"sha256": request.sha256})

    async def _read(self, sha256: str, start: int) -> bytes | None:
        return await self._jobs.journal.run_files(self._jobs.storage.uploads.read, sha256, start, CHUNK_BYTES)

    async def GetServerInfo(self, _: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        async with errors(context):
            fleets = [
                pb.FleetInfo(name=fleet.name, capacity=fleet.slots, allotted=fleet.allotted)
                for fleet in self._jobs.places.fleets.attending
            ]
            return pb.GetServerInfoResponse(
                version=version("thalweg"),
                fleets=fleets,
                max_upload_bytes=self._max_upload_bytes,
                max_running_jobs=self._jobs.places.max_running,
                shards=[pb.ShardInfo(address=shard.address, jobs=shard.jobs) for shard in self._jobs.shards.attending],
            )


def _caller(context: Context) -> str:
    """Who makes a call, and from where, for the log."""
    return visible(f"{caller().principal.name} at {unquote(context.peer())}", MAX_ADDRESS)
