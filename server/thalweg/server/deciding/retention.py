"""Which results are removed because of their age. Pure: time comes in."""

from thalweg.contract.states import ENDED
from thalweg.v1 import job_pb2


def expires(job: job_pb2.Job, now: float, keep_seconds: float) -> bool:
    """Whether the result of a job is to be removed at a time, in seconds since 1970, where results are kept for `keep_seconds`.

    Those of jobs that have not ended, and of jobs that somebody keeps, never are.
    """
    if job.state not in ENDED or job.kept or not job.HasField("result") or job.HasField("result_removed_time"):
        return False
    return now - job.end_time.ToNanoseconds() / 1e9 >= keep_seconds
