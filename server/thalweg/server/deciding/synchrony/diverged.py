"""The end of a training that diverged."""

from thalweg.server.deciding.decisions import Decision, Finish
from thalweg.v1 import job_pb2


def diverged(what: str, step: int) -> list[Decision]:
    """The job fails, with what is not finite, where, and what would help."""
    problem = (
        f"{what} at step {step}. Lower the optimizer's learning_rate, set optimizer.clip_global_norm (1.0, say), or look for "
        "extreme values in the data (data.standardize = true helps). The last finite parameters were kept."
    )
    return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
