"""Accepting a job, on disk: what it learns from and starts from is at hand, then it is recorded."""

from collections.abc import Iterable

from safetensors import SafetensorError

from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.states import ENDED, state_name
from thalweg.server.access.principal import Principal, Scope
from thalweg.server.access.table import READS, covers, scope_of
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.uses import parts_of, uploads_of
from thalweg.server.validation import shown
from thalweg.v1 import job_pb2


def record_job(storage: Storage, job: job_pb2.Job, request_id: str, by: Principal) -> job_pb2.Job | None:
    """Records a job of a principal. Uses the database.

    Gives the job of an equal request id, if there is one; None if the id is taken. Raises ThalwegError if a file that it needs is
    not there, is not the principal's to read, or will not do, and OSError or sqlite3.Error if the disk refuses.
    """
    known = storage.job_of_request(request_id)
    if known:
        return known
    model = job.spec.model
    # Here and not before: nothing is deleted between the look and the record.
    _check_uploads(storage, uploads_of(job.spec), by)
    try:
        parts = parts_of(job.spec, storage.uploads)
    except ValueError as error:
        raise invalid(Violation("data.sha256", str(error))) from error
    _check_uploads(storage, parts, by)
    if model.initial.sha256:
        try:
            storage.check_initial(model.initial.sha256, model.dtype)
        except ValueError as error:
            raise invalid(Violation(f"model.initial.{model.initial.WhichOneof('source')}", str(error))) from error
    return storage.insert_job(job, request_id, job.spec.name, parts)


def _check_uploads(storage: Storage, used: Iterable[str], by: Principal) -> None:
    """Raises ThalwegError if one of some uploads is not there, or is not a principal's to read: to him, that is the same."""
    for sha256 in used:
        readable = scope_of(by, READS) is Scope.ALL or storage.is_readable(sha256, by.name)
        if not (readable and storage.uploads.exists(sha256)):
            raise ThalwegError("DATA_NOT_FOUND", {"sha256": sha256})


def check_source(storage: Storage, job_id: str, by: Principal) -> job_pb2.Job:
    """The job from whose parameters a principal's job is to start. Uses the database. Raises ThalwegError if it cannot."""
    other = storage.job(job_id)
    if other is None or not covers(scope_of(by, READS), by, job=job_id, owner=other.owner, shared=other.shared):
        raise _wrong_source(f"there is no job {shown(job_id)} on this server")
    if other.state not in ENDED:
        raise _wrong_source(f"job {job_id} has not ended (it is {state_name(other.state)}); wait until it has, or cancel it")
    return other


def export(storage: Storage, other: job_pb2.Job) -> str:
    """The SHA-256 of a job's parameters, put among the uploads: from then on they do not depend on that job. Uses files alone.

    Raises ThalwegError if there are none that can be used, and OSError if the disk refuses.
    """
    try:
        sha256 = storage.export_parameters(other.id)
    except (SafetensorError, ValueError) as error:
        raise _wrong_source(f"the parameters of job {other.id} are damaged: {error}") from error
    if sha256 is None and other.HasField("result_removed_time"):
        raise _wrong_source(f"the parameters of job {other.id} were removed because of their age")
    if sha256 is None:
        raise _wrong_source(
            f"job {other.id} has no parameters: it ended as {state_name(other.state)} before they were initialised"
        )
    return sha256


def _wrong_source(problem: str) -> ThalwegError:
    return invalid(Violation("model.initial.job", problem))
