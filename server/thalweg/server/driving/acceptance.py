"""Accepting a job, on disk: what it learns from and starts from is at hand, then it is recorded."""

from safetensors import SafetensorError

from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.states import ENDED, state_name
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.uses import parts_of, uploads_of
from thalweg.server.validation import shown
from thalweg.v1 import job_pb2


def record_job(storage: Storage, job: job_pb2.Job, request_id: str) -> job_pb2.Job | None:
    """Records a job. Uses the database.

    Gives the job of an equal request id, if there is one; None if the id is taken. Raises ThalwegError if a file that it needs is
    not there or will not do, and OSError or sqlite3.Error if the disk refuses.
    """
    known = storage.job_of_request(request_id)
    if known:
        return known
    model = job.spec.model
    # Here and not before: nothing is deleted between the look and the record.
    try:
        parts = parts_of(job.spec, storage.uploads)
    except ValueError as error:
        raise invalid(Violation("data.sha256", str(error))) from error
    for sha256 in (*uploads_of(job.spec), *parts):
        if not storage.uploads.exists(sha256):
            raise ThalwegError("DATA_NOT_FOUND", {"sha256": sha256})
    if model.initial.sha256:
        try:
            storage.check_initial(model.initial.sha256, model.dtype)
        except ValueError as error:
            raise invalid(Violation(f"model.initial.{model.initial.WhichOneof('source')}", str(error))) from error
    return storage.insert_job(job, request_id, job.spec.name, parts)


def check_source(storage: Storage, job_id: str) -> job_pb2.Job:
    """The job whose parameters another one is to start from. Uses the database. Raises ThalwegError if that is not possible."""
    other = storage.job(job_id)
    if other is None:
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
    if sha256 is None:
        raise _wrong_source(
            f"job {other.id} has no parameters: it ended as {state_name(other.state)} before they were initialised"
        )
    return sha256


def _wrong_source(problem: str) -> ThalwegError:
    return invalid(Violation("model.initial.job", problem))
