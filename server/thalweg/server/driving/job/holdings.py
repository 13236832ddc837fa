"""What a run holds of its job: the arrays, what they start from, and what is made of them: downloads, checkpoints, the result."""

import asyncio
import logging
from collections.abc import Callable

from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.downloads import MAX_COPIES, Download, Downloads
from thalweg.server.arrays.interface import Arrays
from thalweg.server.arrays.parameters import PARAMETERS
from thalweg.server.arrays.unallocated import Unallocated
from thalweg.server.deciding.coordinator import Coordinator
from thalweg.server.deciding.data_files import difference
from thalweg.server.deciding.decisions import Finish
from thalweg.server.deciding.impossible import ImpossibleError
from thalweg.server.deciding.values import Position
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.driving.job.starting_point import StartingPoint
from thalweg.server.storage.checkpoints import Checkpoint
from thalweg.server.telemetry import Telemetry
from thalweg.v1 import job_pb2, parameter_service_pb2, training_service_pb2

_log = logging.getLogger(__name__)

# The field of a job's result for the metrics of each set of samples.
_FIELD_OF = {
    parameter_service_pb2.SPLIT_TRAIN: "train",
    parameter_service_pb2.SPLIT_VALIDATION: "validation",
    parameter_service_pb2.SPLIT_TEST: "test",
}


class Holdings:
    """The parameters of one run, wherever they are: in a checkpoint that is not loaded yet, in the arrays, or nowhere.

    `over` is set when the run has ended, or was given up.
    """

    def __init__(self, telemetry: Telemetry, start: StartingPoint, over: asyncio.Event) -> None:
        self.arrays: Arrays = Unallocated()
        # Whether the arrays hold parameters: the initial ones are there, or those that the run starts from.
        self.begun = False
        self._telemetry = telemetry
        self._start = start
        self._over = over
        self._prepared = start.checkpoint.prepared if start.checkpoint else None
        self._downloads: Downloads[int, training_service_pb2.ParametersHeader] = Downloads(MAX_COPIES)

    @property
    def prepared(self) -> parameter_service_pb2.Prepared:
        """What a worker found out about the model and the data. Raises ImpossibleError before one has."""
        if self._prepared is None:
            raise ImpossibleError("no worker has been prepared")
        return self._prepared

    def changed_data(self, found: parameter_service_pb2.Prepared) -> str:
        """How files at URLs differ from those that the job has learned from, in this run or before; empty if they do not."""
        return "" if self._prepared is None else difference(self._prepared.preprocessing, found.preprocessing)

    def learn(self, prepared: parameter_service_pb2.Prepared) -> bool:
        """Takes note of what a worker found out. False if it found another layout than the first one."""
        known = self._prepared
        if known and not layouts.agree(known.layout, prepared.layout):
            return False
        # A checkpoint of release 0.1.0 does not say what samples are.
        if known is None or not known.preprocessing.shape:
            self._prepared = prepared
        elif not known.layout.order and prepared.layout.order:
            # The checkpoint or the first worker is of a release whose layouts have no order.
            self._prepared = parameter_service_pb2.Prepared()
            self._prepared.CopyFrom(known)
            self._prepared.layout.order[:] = prepared.layout.order
        return True

    def read(self, then: Callable[[], object]) -> bool:
        """Whether what the run starts from is at hand. Begins to read it, and calls `then` when that has ended."""
        return self._start.read(self.prepared.layout, then)

    def load(self) -> None:
        """Puts what the run starts from where it belongs. Raises ValueError if it does not fit, or could not be read."""
        self._start.load(self.arrays)

    def begin(self) -> None:
        """The parameters are there."""
        self.begun = True
        self.arrays.offer()

    async def snapshot(self) -> Download[training_service_pb2.ParametersHeader] | None:
        """A copy of the parameters as they are now, shared by all who ask for it. Raises ThalwegError if there are none yet.

        It is an earlier one if there are as many copies as there may be. None if the run is over, or is before they come from
        shards.
        """
        version = self._at_hand()
        return None if version is None else await self._downloads.get(version, self._copied)

    def _at_hand(self) -> int | None:
        """The version of the parameters that there are; None if the run is over. Raises ThalwegError if there are none yet."""
        if self._start.checkpoint:
            return self._start.checkpoint.position.version
        if self._over.is_set():
            return None
        if not self.begun:
            raise ThalwegError("NO_PARAMETERS", {"job": self._telemetry.job.id})
        return self.arrays.version

    async def _copied(self) -> Download[training_service_pb2.ParametersHeader] | None:
        version = self._at_hand()
        if version is None:
            return None
        if self._start.checkpoint:
            slab = self._start.checkpoint.parameters
        else:
            copies = asyncio.Queue[OptimizerState]()
            try:
                self.arrays.copy(copies.put_nowait, state=False)
            except MemoryError as error:
                raise ThalwegError("OUT_OF_MEMORY", {"problem": str(error)}) from error
            over = asyncio.create_task(self._over.wait())
            over.add_done_callback(lambda _: copies.put_nowait({}))
            found = (await copies.get()).get(PARAMETERS)
            over.cancel()
            if found is None:
                return None
            slab = found
        header = header_of(self.prepared, version)
        header.sha256 = await asyncio.to_thread(layouts.digest, slab)
        return Download(header, [slab])

    def checkpoint(self, position: Position, coordinator: Coordinator) -> Callable[[OptimizerState], Checkpoint]:
        """What makes a checkpoint of a copy of the slabs, when it has come, that is made now."""
        samples, seconds = self._telemetry.samples, self._telemetry.seconds
        kinds, used = tuple(coordinator.machines.kinds), coordinator.limit.used

        def made(slabs: OptimizerState) -> Checkpoint:
            trajectory = self.arrays.trajectory
            return Checkpoint(
                position=position,
                prepared=self.prepared,
                parameters=slabs[PARAMETERS],
                state={name: slab for name, slab in slabs.items() if name != PARAMETERS},
                versions=tuple(trajectory.versions),
                trajectory=trajectory.slabs,
                samples=samples,
                seconds=seconds,
                machines=kinds,
                used=used,
            )

        return made

    def leave(self, finish: Finish, coordinator: Coordinator, then: Callable[[JobOutcome], object]) -> None:
        """Calls `then` with what the run leaves, at once or when it has come from shards."""
        job_id, checkpoint = self._telemetry.job.id, self._start.checkpoint

        def leave(version: int, slabs: OptimizerState) -> None:
            try:
                outcome = self._collect(finish, coordinator, version, slabs)
            except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
                _log.exception("job %s: its result cannot be kept", job_id)
                outcome = JobOutcome(job_id, job_pb2.JOB_STATE_FAILED, f"{type(error).__name__}: {error}")
            then(outcome)

        if checkpoint:
            leave(checkpoint.position.version, {PARAMETERS: checkpoint.parameters})
        elif not self.begun or self.arrays.broken:
            then(JobOutcome(job_id, finish.state, finish.error, status=finish.status))
        else:
            version = self.arrays.version
            self.arrays.hand_over(lambda slabs: leave(version, slabs), state=finish.position is not None)

    def _collect(self, finish: Finish, coordinator: Coordinator, version: int, slabs: OptimizerState) -> JobOutcome:
        """The parameters at a version, and the optimizer's state if the job can be resumed there."""
        plan = coordinator.plan
        job, slab, problems = self._telemetry.job, slabs[PARAMETERS], list[str]()
        result = self._telemetry.result(version, plan.epoch_of(version) if plan else job.progress.epoch)
        for split, metrics in finish.metrics.items():
            getattr(result, _FIELD_OF[split]).CopyFrom(metrics)
        # The parameters are kept though these cannot be.
        trajectory = checkpoint = None
        if self.begun:
            try:
                self.arrays.trajectory.add(version, slab)
                trajectory = self.arrays.trajectory
            except MemoryError as error:
                problems.append(f"the trajectory could not be saved: {error or 'no memory'}")
        if finish.position:
            try:
                checkpoint = self.checkpoint(finish.position, coordinator)(slabs)
            except MemoryError as error:
                problems.append(f"no checkpoint of the last step could be saved: {error or 'no memory'}")
        header = header_of(self.prepared, version)
        return JobOutcome(
            job.id, finish.state, finish.error, header, slab, result, trajectory, checkpoint, tuple(problems), finish.status
        )


def header_of(prepared: parameter_service_pb2.Prepared, version: int) -> training_service_pb2.ParametersHeader:
    """What is said of parameters at a version, without their SHA-256: to compute that takes long."""
    return training_service_pb2.ParametersHeader(layout=prepared.layout, version=version, preprocessing=prepared.preprocessing)
