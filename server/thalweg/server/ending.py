"""What a run leaves when it ends."""

from typing import TYPE_CHECKING

from thalweg.contract.layout import Slab
from thalweg.server import messages
from thalweg.server.checkpoints import Checkpoint
from thalweg.server.trajectory import Trajectory
from thalweg.v1 import job_pb2, training_service_pb2

if TYPE_CHECKING:
    from thalweg.server.run import JobRun


class Ending:
    """The state that a job ended in, and its parameters, if it has any."""

    def __init__(self, job_id: str, finish: messages.Finish) -> None:
        self.job_id = job_id
        self.state = finish.state
        self.error = finish.error
        self.header: training_service_pb2.ParametersHeader | None = None
        self.slab: Slab | None = None
        self.trajectory: Trajectory | None = None
        self.result: job_pb2.Result | None = None
        self.checkpoint: Checkpoint | None = None

    def collect(self, run: "JobRun", finish: messages.Finish) -> None:
        """Takes what a run has, if it has parameters."""
        now = run.parameters_now()
        if now is None:
            return
        self.header, self.slab = now
        if finish.position:
            self.checkpoint = run.checkpoint(finish.position)
        plan = run.coordinator.plan
        if run.trajectory:
            run.trajectory.add(self.header.version, self.slab)
            self.trajectory = run.trajectory
        epochs = plan.epoch_of(self.header.version) if plan else run.job.progress.epoch
        self.result = run.telemetry.result(self.header.version, epochs, self.header.sha256)
        if finish.train:
            self.result.train.CopyFrom(finish.train)
        if finish.validation:
            self.result.validation.CopyFrom(finish.validation)
