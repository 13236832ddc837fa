"""What users do on the page, and what they read once: each is a call of the server with the user's own credential."""

from typing import Any, TypeGuard

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from thalweg.client.jobfile import toml_of
from thalweg.client.web import views
from thalweg.client.web.comparison import compared
from thalweg.client.web.entrance import Entrance, Refusal, body
from thalweg.client.web.gateway import Gateway
from thalweg.v1 import training_service_pb2 as pb

# The contract's limits; the server checks them as well.
_MAX_WORKERS, _MAX_PRIORITY = 10_000, 1000


class Actions:
    """Actions, which need the session's confirmation, and answers to single questions."""

    def __init__(self, gateway: Gateway, entrance: Entrance) -> None:
        self._gateway = gateway
        self._entrance = entrance

    async def cancel(self, request: Request) -> Response:
        """Ends a job."""
        session = self._entrance.confirmed(request)
        message = pb.CancelJobRequest(job_id=request.path_params["job"])
        answer = await self._gateway.call(session.credential, self._gateway.stub.CancelJob, message)
        return JSONResponse({"job": views.job(answer.job)})

    async def resume(self, request: Request) -> Response:
        """Resumes a job that was cancelled or has failed."""
        session = self._entrance.confirmed(request)
        message = pb.ResumeJobRequest(job_id=request.path_params["job"])
        answer = await self._gateway.call(session.credential, self._gateway.stub.ResumeJob, message)
        return JSONResponse({"job": views.job(answer.job)})

    async def scale(self, request: Request) -> Response:
        """Changes the number of workers of a job, 0 to pause it, and its priority."""
        session = self._entrance.confirmed(request)
        asked = await body(request)
        workers, priority = asked.get("workers"), asked.get("priority")
        if not _is_whole(workers) or not 0 <= workers <= _MAX_WORKERS:
            raise Refusal(400, f"A job has 0 to {_MAX_WORKERS:,} workers.")
        if priority is not None and (not _is_whole(priority) or abs(priority) > _MAX_PRIORITY):
            raise Refusal(400, f"A priority is a whole number from -{_MAX_PRIORITY:,} to {_MAX_PRIORITY:,}.")
        message = pb.ScaleJobRequest(job_id=request.path_params["job"], workers=workers, priority=priority)
        answer = await self._gateway.call(session.credential, self._gateway.stub.ScaleJob, message)
        return JSONResponse({"job": views.job(answer.job), "note": answer.note})

    async def file(self, request: Request) -> Response:
        """The job file of a job."""
        session = self._entrance.session(request)
        job = await self._gateway.job(session.credential, request.path_params["job"])
        return JSONResponse({"toml": toml_of(job.spec)})

    async def story(self, request: Request) -> Response:
        """The server's recent decisions about a job."""
        session = self._entrance.session(request)
        message = pb.GetStoryRequest(job_id=request.path_params["job"])
        answer = await self._gateway.call(session.credential, self._gateway.stub.GetStory, message)
        entries: list[dict[str, Any]] = [
            {"time": entry.time.ToMicroseconds() / 1e6, "source": entry.source, "text": entry.text} for entry in answer.entries
        ]
        return JSONResponse({"entries": entries})

    async def comparison(self, request: Request) -> Response:
        """In what the job files of two jobs differ."""
        session = self._entrance.session(request)
        left = await self._gateway.job(session.credential, request.path_params["job"])
        right = await self._gateway.job(session.credential, request.path_params["other"])
        return JSONResponse(compared(left.spec, right.spec))


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
