"""Accepting a job, on disk: what it learns from and starts from is at hand, then it is recorded. For the storage's thread."""

from safetensors import SafetensorError

from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.states import ENDED, state_name
from thalweg.server import initial
from thalweg.server.storage import Storage, uploads_of
from thalweg.server.validation import shown
from thalweg.v1 import job_pb2


def accept(storage: Storage, job: job_pb2.Job, request_id: str) -> job_pb2.Job | None:
    """Records a job, and fills in the SHA-256 of another job's parameters, if it starts from those.

    Gives the job of an equal request id, if there is one; None if the id is taken. Raises ThalwegError if a file that it needs is
    not there or will not do, and OSError or sqlite3.Error if the disk refuses.
    """
    known = storage.job_of_request(request_id)
    if known:
        return known
    model = job.spec.model
    if model.initial.job:
        model.initial.sha256 = _export(storage, model.initial.job)
    # Here and not before: nothing is deleted between the look and the record.
    for sha256 in uploads_of(job.spec):
        if not storage.upload(sha256).exists():
            raise ThalwegError("DATA_NOT_FOUND", {"sha256": sha256})
    if model.initial.sha256:
        try:
            initial.check(storage.upload(model.initial.sha256), model.dtype)
        except ValueError as error:
            raise invalid(Violation(f"model.initial.{model.initial.WhichOneof('source')}", str(error))) from error
    return storage.insert_job(job, request_id, job.spec.name)


def _export(storage: Storage, job_id: str) -> str:
    """The SHA-256 of a job's parameters, put among the uploads: from then on they do not depend on that job."""

    def wrong(problem: str) -> ThalwegError:
        return invalid(Violation("model.initial.job", problem))

    other = storage.job(job_id)
    if other is None:
        raise wrong(f"there is no job {shown(job_id)} on this server")
    if other.state not in ENDED:
        raise wrong(f"job {job_id} has not ended, it is {state_name(other.state)}; wait until it has, or cancel it")
    try:
        sha256 = storage.export_parameters(job_id)
    except (SafetensorError, ValueError) as error:
        raise wrong(f"the parameters of job {job_id} are damaged: {error}") from error
    if sha256 is None:
        raise wrong(f"job {job_id} has no parameters: it ended as {state_name(other.state)} before there were any")
    return sha256
