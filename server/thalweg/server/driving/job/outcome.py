"""What a run leaves when it ends."""

import asyncio
from dataclasses import dataclass, replace

from thalweg.contract import layout as layouts
from thalweg.contract.layout import Slab
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.storage.checkpoints import Checkpoint
from thalweg.v1 import job_pb2, training_service_pb2


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The state that a job ended in, and its parameters, if it has any. `problems` are what could not be kept beside them;
    `status` says why it ended, if it has not failed.
    """

    job_id: str
    state: job_pb2.JobState.ValueType
    error: str = ""
    header: training_service_pb2.ParametersHeader | None = None
    slab: Slab | None = None
    result: job_pb2.Result | None = None
    trajectory: Trajectory | None = None
    checkpoint: Checkpoint | None = None
    problems: tuple[str, ...] = ()
    status: str = ""

    def failed(self, problem: str) -> "JobOutcome":
        """The outcome if the job has failed. The first problem is the one that is reported."""
        return replace(self, state=job_pb2.JOB_STATE_FAILED, error=self.error or problem, status="")

    def with_problem(self, problem: str) -> "JobOutcome":
        """The outcome with a further problem."""
        return replace(self, problems=(*self.problems, problem))

    async def sealed(self) -> "JobOutcome":
        """The outcome with the parameters' SHA-256, which takes long to compute: in a thread of its own."""
        if self.header is None or self.slab is None:
            return self
        header, result = training_service_pb2.ParametersHeader(), job_pb2.Result()
        header.CopyFrom(self.header)
        header.sha256 = header.sha256 or await asyncio.to_thread(layouts.digest, self.slab)
        if self.result is None:
            return replace(self, header=header)
        result.CopyFrom(self.result)
        result.weights_sha256 = header.sha256
        return replace(self, header=header, result=result)
