"""The states of a job: their names, and which of them are final."""

from typing import TypeAlias

from thalweg.v1 import job_pb2

State: TypeAlias = job_pb2.JobState.ValueType

ENDED: frozenset[State] = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})

# The beginning of the status of a job without workers. It is for people: programs read `waiting_for`.
NO_WORKERS = "waiting for workers"


def waiting_name(waiting_for: job_pb2.WaitingFor.ValueType) -> str:
    """The name of what a job waits for: the enum's name without its prefix, in lower case."""
    return job_pb2.WaitingFor.Name(waiting_for).removeprefix("WAITING_FOR_").lower()


def state_name(state: State) -> str:
    """The name of a state: the enum's name without its prefix."""
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")
