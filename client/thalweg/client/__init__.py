"""The Python client of Thalweg.

from thalweg.client import Client, local

with local(workers=2) as client:
    job = client.submit("digits")
    for event in job.watch():
        print(event)
    result = job.wait()
    outputs = job.predict(x)
"""

from thalweg.client.client import Client
from thalweg.client.embedded import local
from thalweg.client.errors import JobFailedError, LocalError
from thalweg.client.job import Job
from thalweg.client.jobfile import load_job, packaged_jobs
from thalweg.client.prediction import Prediction, prepare
from thalweg.client.records import (
    CheckpointFailed,
    Checkpoints,
    CheckpointWritten,
    Contributions,
    EpochEnded,
    Event,
    Exchange,
    Metrics,
    Notice,
    Progress,
    Result,
    StateChanged,
    StepsTaken,
    StoryEntry,
    Trajectory,
    WorkersChanged,
)
from thalweg.contract.errors import ThalwegError
from thalweg.contract.tls import Tls

__all__ = [
    "CheckpointFailed",
    "CheckpointWritten",
    "Checkpoints",
    "Client",
    "Contributions",
    "EpochEnded",
    "Event",
    "Exchange",
    "Job",
    "JobFailedError",
    "LocalError",
    "Metrics",
    "Notice",
    "Prediction",
    "Progress",
    "Result",
    "StateChanged",
    "StepsTaken",
    "StoryEntry",
    "ThalwegError",
    "Tls",
    "Trajectory",
    "WorkersChanged",
    "load_job",
    "local",
    "packaged_jobs",
    "prepare",
]
