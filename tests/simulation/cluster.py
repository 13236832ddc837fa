"""An imaginary cluster around one job: a server that crashes, workers that come and go, a network that delays and cuts."""

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.disk import Crash, ImaginaryDisk
from tests.simulation.faults import FOR_GOOD, Faults
from tests.simulation.loop import ImaginaryLoop
from tests.simulation.network import Network
from tests.simulation.shards import GuestStream, ImaginaryShard, ShardSide
from tests.simulation.sockets import ImaginarySocket, MemorySide
from tests.simulation.worker import LAYOUT, TRAIN_SAMPLES, ImaginaryWorker, Leaf
from thalweg.contract import frames, shared_memory
from thalweg.contract.errors import ThalwegError
from thalweg.contract.frames import Parcel
from thalweg.contract.layout import Slab
from thalweg.contract.resources import Memory
from thalweg.learning.optimizers import OptimizerState, norms
from thalweg.server.arrays import copies
from thalweg.server.arrays.budget import Budget
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.deciding import plan
from thalweg.server.deciding.workers.failures import MAX_REPORTS
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.inbox import Inbox
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.services import shard as shard_service
from thalweg.server.settings import RunSettings
from thalweg.server.sharding import host
from thalweg.server.storage.checkpoints import Checkpoint, Checkpoints
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.telemetry import Recorded, told
from thalweg.v1 import job_pb2, shard_service_pb2, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb

_FOLDER = Path("/jobs/imaginary/checkpoints")
_TICK_SECONDS = 0.01
_MAX_SECONDS = FOR_GOOD / 2


@contextmanager
def small_chunks() -> Iterator[None]:
    """Several chunks, the last one shorter, from a slab of few elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "CHUNK_BYTES", 8)
        patch.setattr(plan, "NUMERICAL_CHUNKS", 2)
        # Copies take several turns.
        patch.setattr(copies, "SLICE_BYTES", 8)
        # As in a chunk, there are some in a share.
        patch.setattr(norms, "BLOCK", 2)
        yield


async def _confirm(*_: object) -> None:
    """No imaginary shard offers the address of another one."""


class ImaginaryJournal:
    """Numbers events. Those that are not flushed are lost in a crash."""

    def __init__(self) -> None:
        self.durable: list[training_service_pb2.Event] = []
        self.pending: list[training_service_pb2.Event] = []

    def record(self, _: str, event: training_service_pb2.Event) -> None:
        kept = training_service_pb2.Event()
        kept.CopyFrom(event)
        kept.sequence = len(self.durable) + len(self.pending) + 1
        self.pending.append(kept)

    def flush(self) -> None:
        self.durable += self.pending
        self.pending = []


class Cluster:
    """One job's run, from its submission to its end. The same seed gives the same run."""

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        seed: int,
        leaf: Leaf,
        *,
        faults: Faults | None = None,
        workers: int = 1,
        shards: int = 0,
        near: float = 0.0,
        validation_samples: int = 0,
        checkpoint_seconds: float = 0.1,
        max_workers: int = 6,
    ) -> None:
        self.random = random.Random(seed)
        self.leaf = leaf
        self.spec = spec
        self.prepared = pb.Prepared(
            layout=LAYOUT, train_samples=TRAIN_SAMPLES, validation_samples=validation_samples, metrics=("accuracy",)
        )
        self.faults = faults or Faults()
        self.loop = ImaginaryLoop()
        self.at = self.loop.at
        self.network = Network(self.loop, self.random, self.faults.latency)
        self.disk = ImaginaryDisk(self.random)
        self.journal = ImaginaryJournal()
        self.run_: JobDriver | None = None
        self.ended: JobOutcome | None = None
        self.staleness = 0
        self.counts = job_pb2.Contributions()
        self.problems: list[str] = []
        self.incarnations = 0
        self.checkpoints = 0
        self.repeated = 0
        # The version with which the current run began.
        self.began_at = 0
        self.let_go_of = 0
        self.failing = 0
        self.refused = self.odd_refused = 0
        # The kind of the machines that workers run on, and how often others took their place.
        self.machine, self.moved = "one kind", 0
        self.killed_at_start = 0
        self.wanted = workers
        self.max_workers = max_workers
        self._settings = RunSettings(silence_seconds=0.3, checkpoint_seconds=checkpoint_seconds)
        self._names = itertools.count(1)
        self.workers: dict[int, ImaginaryWorker] = {}
        self._arrivals: dict[tuple[int, str], float] = {}
        self.finished: JobOutcome | None = None
        self.received = 0
        self.stalled_until = 0.0
        self.no_memory = False
        # The probability with which a worker is on the server's machine; the memory and the sockets of that.
        self.near = near
        self.memory = MemorySide(self.network, lambda: self.stalled_until, shared_memory.create)
        self._sharing: Sharing | None = None
        self.attached = 0
        # What the server's process has of shards, if it runs; the shards, by their addresses.
        self.server: ShardSide | None = None
        self.shards: dict[str, ImaginaryShard] = {}
        self.shard_numbers = itertools.count(1)
        self.first_shards = shards
        # Runs that were split over shards, that lost one, and that lost one while a copy was being put together.
        self.split = self.returned = self.interrupted = 0
        self._copying = 0
        self._saving: list[Callable[[], None]] = []

    @property
    def now(self) -> float:
        """The time, in seconds."""
        return self.loop.now

    def run(self) -> Slab:
        """Runs to the end, and gives the final parameters."""
        with small_chunks(), self._imaginary(), self.loop.running():
            for _ in range(self.first_shards):
                self.add_shard(next(self.shard_numbers))
            self.start_server()
            for _ in range(self.wanted):
                self.join()
            self.at(_TICK_SECONDS, self._tick)
            self.faults.begin(self)
            while self.ended is None:
                try:
                    self.loop.step()
                except Crash:
                    self.crash()
                assert self.now < _MAX_SECONDS, "nothing moves any more"
            self.die()
        assert self.ended.state == job_pb2.JOB_STATE_SUCCEEDED, self.ended.error
        assert self.ended.slab is not None
        return self.ended.slab

    @contextmanager
    def _imaginary(self) -> Iterator[None]:
        """Memory that can be scarce, for as long as the context, and shards that have enough."""
        copy = LocalArrays.copy

        def scarce(arrays: LocalArrays, then: Callable[[OptimizerState], object], *, state: bool) -> None:
            if self.no_memory:
                raise MemoryError("nothing is left")
            self._copying += 1

            def made(slabs: OptimizerState) -> None:
                self._copying -= 1
                then(slabs)

            copy(arrays, made, state=state)

        receive = Inbox.receive

        def count(inbox: Inbox, worker: int, request: Parcel[pb.WorkRequest]) -> None:
            message = request.message
            if self.run_ and not self.finished and not self.run_.over.is_set():
                self.received += message.HasField("gradient") or message.HasField("shared_gradient")
                self.attached += message.prepared.shared_memory
            receive(inbox, worker, request)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalArrays, "copy", scarce)
            patch.setattr(Inbox, "receive", count)
            if self.first_shards:
                patch.setattr(host, "Budget", lambda: Budget(lambda: Memory(1 << 40, 1 << 40), lambda: 0))
                patch.setattr(shard_service, "confirm", _confirm)
            if self.near:
                patch.setattr(shared_memory, "listen", self.memory.listen)
                patch.setattr(shared_memory, "create", self.memory.create)
            yield

    def start_server(self) -> None:
        """The server starts, and takes the job up where it was."""
        self.incarnations += 1
        self.server = ShardSide(self, self._settings, self._shard_lost)
        self._sharing = Sharing() if self.near else None
        self._start_run()

    def _start_run(self) -> None:
        """The job goes on from its last checkpoint."""
        self.received = self._copying = 0
        checkpoint, problems = Checkpoints(_FOLDER, self.disk).latest()
        self.problems += problems
        self.began_at = checkpoint.position.version if checkpoint else 0
        steps, epochs = told(reversed(self.journal.durable))
        self.repeated += steps - self.began_at
        recorded = Recorded(steps, epochs, checkpoint.samples if checkpoint else 0)
        job = job_pb2.Job(id="imaginary", spec=self.spec, state=job_pb2.JOB_STATE_QUEUED)
        assert self.server
        self.server.shards.of_run.clear()
        self.run_ = JobDriver(
            job,
            self.journal,
            self._ends,
            self._save,
            settings=self._settings,
            clock=lambda: self.now,
            checkpoint=checkpoint,
            recorded=recorded,
            sharing=self._sharing,
            shards=self.server.shards,
            spare=self._spare,
        )

    def die(self) -> None:
        """The server's process ends."""
        if self.server:
            self.server.die()
        self.server = None
        if self.run_:
            self.run_.release()
        if self._sharing:
            self._sharing.close()
        self._sharing = None

    def _spare(self, act: Callable[[], bool]) -> None:
        """Copies go on now and then, until the server dies."""
        run = self.run_

        def turn() -> None:
            if run is not None and self.run_ is run and act():
                self._spare(act)

        self.at(self.random.expovariate(1 / self.faults.latency), turn)

    def _account(self) -> None:
        """Every contribution that came is accounted for."""
        assert self.run_
        counts = self.run_.telemetry.contributions
        accounted = counts.applied + counts.duplicate + counts.late + counts.stale_incarnation + counts.unknown
        assert accounted == self.received, f"{accounted} of {self.received} contributions are accounted for"
        self._count()

    def _count(self) -> None:
        """Adds up what the runs counted."""
        assert self.run_
        counts = self.run_.telemetry.contributions
        for name in ("duplicate", "late", "stale_incarnation", "unknown", "reissued_tasks", "lost_workers", "lost_residuals"):
            setattr(self.counts, name, getattr(self.counts, name) + getattr(counts, name))
        self.counts.greatest_staleness = max(self.counts.greatest_staleness, counts.greatest_staleness)

    def _note_shards(self) -> None:
        """Counts a run that ends, if it was split over shards."""
        assert self.server
        self.split += bool(self.server.shards.of_run)

    def crash(self) -> None:
        """The server's machine goes down, and comes back."""
        if self.run_:
            self._note_shards()
            self.counts.lost_residuals += self.run_.telemetry.contributions.lost_residuals
        self.die()
        self.run_ = None
        self.finished = None
        self.journal.pending = []
        self._saving = []
        self.disk.crash()
        for worker in list(self.workers.values()):
            self.rejoin_later(worker)
        self.at(self.random.uniform(0, 0.2), self.start_server)

    def damage_checkpoint(self) -> None:
        """A bit of the newest checkpoint turns."""
        self.disk.damage(_FOLDER)

    def _shard_lost(self, shard: ShardLink) -> None:
        """A shard is gone. As `Jobs` and the lifecycle have it: what needs it goes back to its last checkpoint."""
        run, server = self.run_, self.server
        if run is None or self.finished or not run.needs(shard):
            return
        self.returned += 1
        self.interrupted += self._copying > 0
        self._count()
        self._note_shards()
        self.run_ = None
        run.give_up(f"shard {shard.address} was lost")

        def go_on() -> None:
            if server is not self.server:
                return
            # What the run has left is on its way to the disk.
            for save in list(self._saving):
                save()
            self.journal.flush()
            self._start_run()

        self.at(self.random.uniform(0, 0.05), go_on)

    def _tick(self) -> None:
        if self.now >= self.stalled_until:
            self._attend(0.0)
            if self.run_ and self.random.random() < 0.2:
                self.journal.flush()
        self.at(_TICK_SECONDS, self._tick)

    def _attend(self, missed: float) -> None:
        """Looks who is silent. For `missed` seconds nobody listened."""
        if self.run_:
            self.run_.tick(missed)
        if self.server:
            for shard in self.server.shards.silent(self._settings.silence_seconds, missed):
                shard.give_up()
                self.server.shard_lost(shard)

    def stall(self, seconds: float) -> None:
        """The server's process stands still. Time passes before it hears what was said meanwhile."""
        server = self.server
        if self.now < self.stalled_until:
            return

        def wake() -> None:
            if server is self.server:
                self._attend(seconds)

        self.at(seconds, wake)
        self.stalled_until = self.now + seconds

    def _save(self, checkpoint: Checkpoint) -> None:
        run, server = self.run_, self.server

        def save() -> None:
            if server is not self.server or save not in self._saving:
                return
            self._saving.remove(save)
            self.journal.flush()
            version, problem, size = checkpoint.position.version, "", 0
            try:
                size = Checkpoints(_FOLDER, self.disk).write(checkpoint)
                self.checkpoints += 1
            except OSError as error:
                problem = str(error)
            if run is not None and not run.over.is_set():
                run.checkpoint_done(version, size, 0.001, problem)

        self._saving.append(save)
        self.at(self.random.uniform(0, 0.05), save)

    def _ends(self, ending: JobOutcome) -> None:
        run = self.run_
        with self.loop.held_against_the_run():
            self._account()
        self._note_shards()
        self.finished = ending

        def end() -> None:
            if run is not None and self.run_ is run:
                self.journal.flush()
                self.ended = ending

        self.at(self.random.uniform(0, 0.02), end)

    def add_shard(self, number: int) -> None:
        """A shard's process starts, unless it runs already."""
        if all(shard.number != number for shard in self.shards.values()):
            shard = ImaginaryShard(self, number)
            self.shards[str(shard.address)] = shard

    def some_shard(self) -> ImaginaryShard | None:
        """One of the shards, if there are any."""
        return self.random.choice(list(self.shards.values())) if self.shards else None

    def heard_of_shard(self, server: ShardSide, message: shard_service_pb2.HoldRequest) -> None:
        """What a shard says reaches a server."""
        if server is self.server and self.run_ and not self.finished and message.share in server.shards.of_run:
            self.received += message.arrival.HasField("gradient")

    def without_shard(self, worker: ImaginaryWorker) -> None:
        """A worker has lost a shard: it ends its stream to the server, too, and comes again."""
        self._leave_soon(worker)
        self.rejoin_later(worker)

    def replace_worker(self, worker: ImaginaryWorker) -> None:
        """A worker's process ends by itself, and another one takes its place."""
        if worker.worker in self.workers:
            self.lose(worker)
            self.at(self.random.uniform(0.01, 0.1), self.replace)

    def busy(self, worker: ImaginaryWorker) -> Callable[[], float]:
        """Until when a worker stands still, as a function."""
        return lambda: worker.stopped_until

    def call(self, busy: Callable[[], float]) -> ImaginarySocket | None:
        """A worker's connection to the server's socket, if there is one."""
        return self.memory.listener.call(busy) if self.memory.listener else None

    def stream_to_shard(self, worker: ImaginaryWorker, shard: pb.ShardRange) -> GuestStream:
        """A worker's stream to a shard."""
        return GuestStream(self, worker, shard)

    def join(self) -> ImaginaryWorker:
        """A worker starts, and opens its stream as soon as there is a server."""
        worker = ImaginaryWorker(self, next(self._names))
        worker.slowness = self.random.choice([1.0, 1.0, 1.2, 3.0])
        worker.machine = self.machine
        worker.near = self.near > 0 and self.random.random() < self.near
        self.workers[worker.worker] = worker

        def open_stream() -> None:
            if not worker.alive:
                return
            if self.run_ is None or self.finished:
                self.at(0.05, open_stream)
            elif not self._may_come(worker, self.run_):
                # If it waited for others, nobody would take its place: it may be the only worker.
                self.rejoin_later(worker)
            else:
                worker.run = self.run_
                self.run_.join(worker)

        self.at(self.random.uniform(0, 0.03), open_stream)
        return worker

    def _may_come(self, worker: ImaginaryWorker, run: JobDriver) -> bool:
        """Whether a run is as far as it has to be for a worker: one that is unlike the others may not be the first.

        The run may have begun again since the worker started, from a checkpoint or from nothing. Workers that report a failure
        before the run is further than its checkpoint are counted.
        """
        if worker.disagrees and run.coordinator.plan is None:
            return False
        if worker.odd and not run.telemetry.contributions.applied:
            return False
        if worker.fails and not run.coordinator.version:
            # Others got further in an earlier run, if there is a checkpoint. Where many fail at first, the job rightly fails.
            if not self.began_at or self.failing >= MAX_REPORTS - 1:
                return False
            self.failing += 1
        return True

    def lose(self, worker: ImaginaryWorker) -> None:
        """A worker's process dies: what it has sent still arrives, or not; its stream breaks."""
        worker.end()
        del self.workers[worker.worker]
        self._leave_soon(worker)

    def _leave_soon(self, worker: ImaginaryWorker) -> None:
        """The server finds a worker's stream broken."""
        run = worker.run

        def leave() -> None:
            worker.left = True
            if run and run is self.run_:
                run.leave(worker.worker)

        self.at(self.random.uniform(0, 0.01), leave)

    def rejoin_later(self, worker: ImaginaryWorker) -> None:
        """A worker's process ends, and another one takes its place."""
        worker.end()
        if self.workers.pop(worker.worker, None):
            self.at(self.random.uniform(0.02, 0.2), self.replace)

    def replace(self) -> None:
        """A worker comes, if there are fewer than there should be."""
        if len(self.workers) < self.wanted:
            self.join()

    def let_go(self, worker: ImaginaryWorker) -> None:
        """The server said goodbye: the worker ends, and, unless the job has ended, another one comes."""
        self.let_go_of += not self.finished and self.run_ is not None
        self.rejoin_later(worker)

    def evicted(self, worker: ImaginaryWorker, error: ThalwegError | None) -> None:
        """The server ended a worker's stream."""
        self.refused += error is not None
        self.odd_refused += error is not None and error.reason == "OTHER_MACHINE"
        assert error is None or worker.disagrees or worker.odd, f"an honest worker was refused: {error}"
        self.rejoin_later(worker)

    def beat(self, worker: ImaginaryWorker) -> None:
        """A heartbeat, and the next ones, unless the worker stands still."""
        if worker.alive:
            if self.now >= worker.stopped_until:
                self.to_server(worker, pb.WorkRequest(heartbeat=pb.Heartbeat()))
            self.at(max(worker.heartbeat_seconds, 0.01), lambda: self.beat(worker))

    def _arrival(self, worker: ImaginaryWorker, direction: str) -> float:
        """When a message that is sent now arrives: messages of one stream in one direction keep their order."""
        now, stream = self.loop.now, (worker.worker, direction)
        arrival = max(self._arrivals.get(stream, 0.0), now + self.network.seconds())
        self._arrivals[stream] = arrival
        return arrival

    def to_worker(self, worker: ImaginaryWorker, message: pb.WorkResponse) -> None:
        """A message on its way to a worker, which takes it when it is through with those before."""

        def arrive() -> None:
            if worker.alive and worker.heard:
                worker.inbox.append(message)
                if not worker.busy:
                    self.work(worker)

        self.loop.at_time(self._arrival(worker, "down"), arrive)

    def work(self, worker: ImaginaryWorker) -> None:
        """Lets a worker take its messages one by one, each when it is through with those before."""
        worker.busy = True
        while worker.alive and (worker.inbox or worker.read()):
            if self.now < worker.stopped_until:
                self.at(worker.stopped_until - self.now, lambda: self.work(worker))
                return
            if worker.missing(worker.inbox[0]):
                return
            seconds = worker.seconds(worker.inbox[0])
            if seconds:
                worker.begin(worker.inbox[0])
                self.at(seconds / 2, partial(self._half_worked, worker, seconds / 2))
                return
            worker.handle(worker.inbox.popleft())
        worker.busy = False

    def _half_worked(self, worker: ImaginaryWorker, left: float) -> None:
        if self.now < worker.stopped_until:
            self.at(worker.stopped_until - self.now, lambda: self._half_worked(worker, left))
        elif worker.alive:
            worker.half_way(worker.inbox[0])
            self.at(left, lambda: self._worked(worker))

    def _worked(self, worker: ImaginaryWorker) -> None:
        if self.now < worker.stopped_until:
            self.at(worker.stopped_until - self.now, lambda: self._worked(worker))
        elif worker.alive:
            worker.handle(worker.inbox.popleft())
            self.work(worker)

    def to_server(self, worker: ImaginaryWorker, message: pb.WorkRequest) -> None:
        """A message on its way to the server."""
        run, request = worker.run, frames.unpacked(message)

        def arrive() -> None:
            if self.now < self.stalled_until:
                self.loop.at_time(self.stalled_until, arrive)
                return
            if not run or self.run_ is not run or not worker.heard or self.finished:
                return
            # Streams that have ended say nothing more. Contributions are tried all the same.
            if worker.left and message.HasField("prepared"):
                return
            try:
                run.receive(worker.worker, request)
            except ThalwegError as error:
                raise AssertionError(f"an honest worker was refused: {error}") from error

        self.loop.at_time(self._arrival(worker, "up"), arrive)
        # Of a gradient that goes several ways the last chunk says that all others are under way: it comes once.
        again = message.HasField("gradient") and not (worker.streams and message.gradient.HasField("sums"))
        if again and self.random.random() < self.faults.duplicate:
            self.loop.at_time(self._arrival(worker, "up") + self.random.choice([0.0, 0.0, 0.05]), arrive)

    def some_worker(self) -> ImaginaryWorker | None:
        """One of the workers, if there are any."""
        return self.random.choice(list(self.workers.values())) if self.workers else None

    def scale(self, workers: int) -> None:
        """As many workers are wanted from now on."""
        self.wanted = workers
        while len(self.workers) > self.wanted:
            self.lose(self.random.choice(list(self.workers.values())))
        for _ in range(self.wanted - len(self.workers)):
            self.join()


def losses(events: list[training_service_pb2.Event]) -> list[float]:
    """The loss of each step, which is told once, in order."""
    found: list[float] = []
    for event in events:
        if event.HasField("steps_taken"):
            assert event.steps_taken.first_step == len(found), "a step was told twice, or not at all"
            found += event.steps_taken.losses
    return found


def epochs(events: list[training_service_pb2.Event]) -> list[Any]:
    """The epochs, each of which is told once, in order."""
    ended = [event.epoch_ended for event in events if event.HasField("epoch_ended")]
    assert [epoch.epoch for epoch in ended] == list(range(1, len(ended) + 1)), "an epoch was told twice, or not at all"
    return ended
