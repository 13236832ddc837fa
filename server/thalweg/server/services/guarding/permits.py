"""What the caller of the present call may use its method on: jobs by their owners, and uploads."""

import hashlib
import sqlite3

from google.protobuf.message import Message

from thalweg.contract import addresses
from thalweg.contract.errors import ThalwegError
from thalweg.server.access.principal import ADMIN, Principal, Role, Scope, caller
from thalweg.server.access.table import READS, SEES, covers, scope_of
from thalweg.server.driving.jobs import Jobs
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# The field of every request about a job.
_JOB = "job_id"
# What the audit log says of requests: the job, the upload, the token, the fleet or node, and how they are to be.
_ABOUT = (_JOB, "sha256", "name", "role", "target", "workers", "shared")


class Permits:
    """Looks up whose jobs and uploads are, for the calls of one server. Belongs to its event loop."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def request(self, message: Message) -> None:
        """Raises ThalwegError if a request is about a job on which the caller may not use the method, or that does not exist.

        Those who may not see a job are told that it does not exist.
        """
        for name in _ABOUT:
            value = getattr(message, name, "")
            if value != "":
                caller().act.about[name] = str(value)
        job_id = getattr(message, _JOB, None)
        if job_id is None or caller().scope is Scope.ALL:
            return
        principal, method, scope, _ = caller()
        job = await self._jobs.queries.get(job_id)
        if _covers(scope, principal, job):
            return
        if not _covers(scope_of(principal, SEES), principal, job):
            raise ThalwegError("JOB_NOT_FOUND", {"job": job_id})
        problem = f"job {job_id} belongs to {job.owner or 'administrators'}"
        raise ThalwegError("PERMISSION_DENIED", {"name": principal.name, "method": method.rpartition("/")[2], "problem": problem})

    def shown(self, job: job_pb2.Job) -> job_pb2.Job:
        """A job as the caller may see it: without secrets in URLs, if what it consists of is not the caller's to read."""
        principal = caller().principal
        if _covers(scope_of(principal, READS), principal, job):
            return job
        shown = job_pb2.Job()
        shown.CopyFrom(job)
        for part in addresses.sources_of(shown.spec.data).values():
            addresses.hide_secrets(part)
        return shown

    def shown_event(self, event: pb.Event) -> pb.Event:
        """An event of a job, which may have the job, as the caller may see it."""
        if not event.HasField("state_changed"):
            return event
        shown = pb.Event()
        shown.CopyFrom(event)
        shown.state_changed.job.CopyFrom(self.shown(event.state_changed.job))
        return shown

    def reader(self) -> str | None:
        """Of whom the jobs are that the caller may list, besides shared ones; None for all jobs."""
        principal, _, scope, _ = caller()
        return None if scope is Scope.ALL else principal.name

    async def may_read(self, sha256: str) -> bool:
        """Whether the caller may read an upload, if there is one. To know its SHA-256 is not enough."""
        principal, _, scope, _ = caller()
        run, storage = self._jobs.journal.run, self._jobs.storage
        if scope is Scope.ALL:
            return True
        if principal.role is Role.WORKER:
            return await run(storage.is_used_by, sha256, principal.job)
        return await run(storage.is_readable, sha256, principal.name)

    async def has_uploaded(self, sha256: str) -> None:
        """The caller has shown that he has the content of an upload. Raises ThalwegError if that cannot be recorded."""
        try:
            await self._jobs.journal.run(self._jobs.storage.own_upload, sha256, caller().principal.name)
        except (sqlite3.Error, OSError) as error:
            raise self._jobs.answers.refusal(error, "Upload the file again then.") from error


def part_name(sha256: str) -> str:
    """The name of what has arrived of a file from the caller. It looks like a SHA-256, so that the part outlives the server.

    Each principal has parts of his own: one who has the end of a file must not complete the beginning that another one sent.
    """
    owner = caller().principal.name
    return sha256 if owner == ADMIN.name else hashlib.sha256(f"{owner} {sha256}".encode()).hexdigest()


def _covers(scope: Scope, principal: Principal, job: job_pb2.Job) -> bool:
    return covers(scope, principal, job=job.id, owner=job.owner, shared=job.shared)
