"""What a run leaves when it ends."""

import asyncio
from typing import TYPE_CHECKING

from thalweg.contract import layout as layouts
from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.parameters import PARAMETERS
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.deciding.decisions import Finish
from thalweg.server.storage.checkpoints import Checkpoint
from thalweg.v1 import job_pb2, training_service_pb2

if TYPE_CHECKING:
    from thalweg.server.driving.job import JobDriver


class JobOutcome:
    """The state that a job ended in, and its parameters, if it has any. `problems` are what could not be kept beside them."""

    def __init__(self, job_id: str, finish: Finish) -> None:
        self.job_id = job_id
        self.state = finish.state
        self.error = finish.error
        self.header: training_service_pb2.ParametersHeader | None = None
        self.slab: Slab | None = None
        self.trajectory: Trajectory | None = None
        self.result: job_pb2.Result | None = None
        self.checkpoint: Checkpoint | None = None
        self.problems: list[str] = []

    def collect(self, run: "JobDriver", finish: Finish, version: int, slabs: OptimizerState) -> None:
        """Takes what a run has: its parameters at a version, and the optimizer's state if it can be resumed there."""
        self.slab = slabs[PARAMETERS]
        self.header = run.header(version)
        plan = run.coordinator.plan
        epochs = plan.epoch_of(version) if plan else run.job.progress.epoch
        self.result = run.telemetry.result(version, epochs)
        if finish.train:
            self.result.train.CopyFrom(finish.train)
        if finish.validation:
            self.result.validation.CopyFrom(finish.validation)
        # The parameters are kept though these cannot be.
        if run.arrays:
            try:
                run.arrays.trajectory.add(version, self.slab)
                self.trajectory = run.arrays.trajectory
            except MemoryError as error:
                self.problems.append(f"the trajectory could not be kept: {error or 'no memory'}")
        if finish.position:
            try:
                self.checkpoint = run.checkpoint(finish.position)(slabs)
            except MemoryError as error:
                self.problems.append(f"no checkpoint of the last step could be kept: {error or 'no memory'}")

    async def seal(self) -> None:
        """Computes the parameters' SHA-256, which takes long, in a thread of its own."""
        if self.header is not None and self.slab is not None and not self.header.sha256:
            self.header.sha256 = await asyncio.to_thread(layouts.digest, self.slab)
        if self.header is not None and self.result is not None:
            self.result.weights_sha256 = self.header.sha256
