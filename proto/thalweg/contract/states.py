"""The life of a job: what its states are called, and which of them it does not leave."""

from typing import TypeAlias

from thalweg.v1 import job_pb2

State: TypeAlias = job_pb2.JobState.ValueType

ENDED: frozenset[State] = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})

# The status of a job without workers begins with it. It is for people: programs read `waiting_for`.
NO_WORKERS = "waiting for workers"


def waiting_name(waiting_for: job_pb2.WaitingFor.ValueType) -> str:
    """What a job waits for: the name in the enum without its prefix, in lower case."""
    return job_pb2.WaitingFor.Name(waiting_for).removeprefix("WAITING_FOR_").lower()


def state_name(state: State) -> str:
    """A state as people read it: the enum's name without its prefix."""
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")
