"""An imaginary cluster around one job: a server that crashes, workers that come and go, a network that delays and cuts."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.disk import Crash, ImaginaryDisk
from tests.simulation.worker import LAYOUT, NODES, TRAIN_SAMPLES, ImaginaryWorker, Leaf
from thalweg.contract import frames
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays import copies
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.deciding import plan
from thalweg.server.deciding.events import CheckpointRequested
from thalweg.server.deciding.values import Place
from thalweg.server.deciding.workers.failures import MAX_REPORTS
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.settings import RunSettings
from thalweg.server.storage.checkpoints import Checkpoint, Checkpoints
from thalweg.server.telemetry import Recorded, told
from thalweg.v1 import job_pb2, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb

_FOLDER = Path("/jobs/imaginary/checkpoints")
_TICK_SECONDS = 0.01
_MAX_SECONDS = 1000.0


@contextmanager
def small_chunks() -> Iterator[None]:
    """Several chunks, the last one shorter, from a slab of few elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "CHUNK_BYTES", 8)
        patch.setattr(plan, "NUMERICAL_CHUNKS", 2)
        # Copies take several turns.
        patch.setattr(copies, "SLICE_BYTES", 8)
        yield


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


@dataclass
class Faults:
    """What goes wrong: each kind by its weight, `most` in all, about every `seconds`. Messages take about `latency` seconds."""

    kinds: dict[str, float] = field(default_factory=dict)
    most: int = 0
    seconds: float = 0.05
    latency: float = 0.001


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
        validation_samples: int = 0,
        checkpoint_seconds: float = 0.1,
        most_workers: int = 6,
    ) -> None:
        self.random = random.Random(seed)
        self.leaf = leaf
        self.spec = spec
        self.prepared = pb.Prepared(
            layout=LAYOUT, train_samples=TRAIN_SAMPLES, validation_samples=validation_samples, metrics=("accuracy",)
        )
        self.faults = faults or Faults()
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
        self.let_go_of = 0
        self._failing = 0
        self.refused = self.odd_refused = 0
        # The kind of the machines that workers run on, and how often others took their place.
        self.machine, self.moved = "one kind", 0
        self.killed_at_start = 0
        self.wanted = workers
        self._most_workers = most_workers
        self._settings = RunSettings(silence_seconds=0.3, checkpoint_seconds=checkpoint_seconds)
        self.now = 0.0
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._names = itertools.count(1)
        self.workers: dict[int, ImaginaryWorker] = {}
        self._arrivals: dict[tuple[int, str], float] = {}
        self._finished: JobOutcome | None = None
        self._received = 0
        self._stalled_until = 0.0
        self._no_memory = False

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Lets something happen later."""
        heapq.heappush(self._actions, (self.now + seconds, next(self._numbers), action))

    def run(self) -> Slab:
        """Runs to the end, and gives the final parameters."""
        with small_chunks(), self._scarce_memory():
            self.start_server()
            for _ in range(self.wanted):
                self.join()
            if "hang" in self.faults.kinds:
                self._fault_hang()
            self.at(_TICK_SECONDS, self._tick)
            self.at(self.random.expovariate(1 / self.faults.seconds), self._fault)
            while self.ended is None:
                self.now, _, action = heapq.heappop(self._actions)
                assert self.now < _MAX_SECONDS, "nothing moves any more"
                try:
                    action()
                except Crash:
                    self._crash()
        assert self.ended.state == job_pb2.JOB_STATE_SUCCEEDED, self.ended.error
        assert self.ended.slab is not None
        return self.ended.slab

    @contextmanager
    def _scarce_memory(self) -> Iterator[None]:
        copy = LocalArrays.copy

        def scarce(arrays: LocalArrays, then: Callable[[OptimizerState], object], *, state: bool) -> None:
            if self._no_memory:
                raise MemoryError("nothing is left")
            copy(arrays, then, state=state)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalArrays, "copy", scarce)
            yield

    def start_server(self) -> None:
        """The server starts, and takes the job up where it was."""
        self.incarnations += 1
        self._received = 0
        checkpoint, problems = Checkpoints(_FOLDER, self.disk).latest()
        self.problems += problems
        steps, epochs = told(reversed(self.journal.durable))
        self.repeated += steps - (checkpoint.position.version if checkpoint else 0)
        recorded = Recorded(steps, epochs, checkpoint.samples if checkpoint else 0)
        job = job_pb2.Job(id="imaginary", spec=self.spec, state=job_pb2.JOB_STATE_QUEUED)
        self.run_ = JobDriver(
            job,
            self.journal,
            self._ends,
            self._save,
            settings=self._settings,
            clock=lambda: self.now,
            checkpoint=checkpoint,
            recorded=recorded,
            spare=self._spare,
        )

    def _spare(self, act: Callable[[], bool]) -> None:
        """Copies go on now and then, until the server dies."""
        run = self.run_

        def turn() -> None:
            if run is not None and self.run_ is run and act():
                self._spare(act)

        self.at(self.random.expovariate(1 / self.faults.latency), turn)

    def _account(self) -> None:
        """Every contribution that came is accounted for."""
        if self.run_ is None:
            return
        counts = self.run_.telemetry.contributions
        accounted = counts.applied + counts.duplicate + counts.late + counts.stale_incarnation + counts.unknown
        assert accounted == self._received, f"{accounted} of {self._received} contributions are accounted for"
        for name in ("duplicate", "late", "stale_incarnation", "unknown", "reissued_tasks", "lost_workers", "lost_residuals"):
            setattr(self.counts, name, getattr(self.counts, name) + getattr(counts, name))
        self.counts.greatest_staleness = max(self.counts.greatest_staleness, counts.greatest_staleness)

    def _crash(self) -> None:
        if self.run_:
            self.counts.lost_residuals += self.run_.telemetry.contributions.lost_residuals
        self.run_ = None
        self._finished = None
        self.journal.pending = []
        self.disk.crash()
        for worker in list(self.workers.values()):
            self._rejoin_later(worker)
        self.at(self.random.uniform(0, 0.2), self.start_server)

    def _tick(self) -> None:
        if self.run_ and self.now >= self._stalled_until:
            self.run_.tick()
            if self.random.random() < 0.2:
                self.journal.flush()
        self.at(_TICK_SECONDS, self._tick)

    def _save(self, checkpoint: Checkpoint) -> None:
        run = self.run_

        def save() -> None:
            if run is None or self.run_ is not run:
                return
            self.journal.flush()
            version, problem, size = checkpoint.position.version, "", 0
            try:
                size = Checkpoints(_FOLDER, self.disk).write(checkpoint)
                self.checkpoints += 1
            except OSError as error:
                problem = str(error)
            run.checkpoint_done(version, size, 0.001, problem)

        self.at(self.random.uniform(0, 0.05), save)

    def _ends(self, ending: JobOutcome) -> None:
        run = self.run_
        self._account()
        self._finished = ending

        def end() -> None:
            if run is not None and self.run_ is run:
                self.journal.flush()
                self.ended = ending

        self.at(self.random.uniform(0, 0.02), end)

    def join(self) -> ImaginaryWorker:
        """A worker starts, and opens its stream as soon as there is a server."""
        worker = ImaginaryWorker(self, next(self._names))
        worker.slowness = self.random.choice([1.0, 1.0, 1.2, 3.0])
        worker.machine = self.machine
        self.workers[worker.worker] = worker

        def open_stream() -> None:
            if not worker.alive:
                return
            if self.run_ is None or self._finished:
                self.at(0.05, open_stream)
            else:
                self.run_.join(worker)

        self.at(self.random.uniform(0, 0.03), open_stream)
        return worker

    def lose(self, worker: ImaginaryWorker) -> None:
        """A worker's process dies: what it has sent still arrives, or not; its stream breaks."""
        worker.alive = False
        del self.workers[worker.worker]
        run = self.run_
        self.at(self.random.uniform(0, 0.01), lambda: run.leave(worker.worker) if run and run is self.run_ else None)

    def _rejoin_later(self, worker: ImaginaryWorker) -> None:
        worker.alive = False
        if self.workers.pop(worker.worker, None):
            self.at(self.random.uniform(0.02, 0.2), self._replace)

    def _replace(self) -> None:
        if len(self.workers) < self.wanted:
            self.join()

    def let_go(self, worker: ImaginaryWorker) -> None:
        """The server said goodbye: the worker ends, and, unless the job has ended, another one comes."""
        self.let_go_of += not self._finished
        self._rejoin_later(worker)

    def evicted(self, worker: ImaginaryWorker, error: ThalwegError | None) -> None:
        """The server ended a worker's stream."""
        self.refused += error is not None
        self.odd_refused += error is not None and error.reason == "OTHER_MACHINE"
        assert error is None or worker.disagrees or worker.odd, f"an honest worker was refused: {error}"
        self._rejoin_later(worker)

    def beat(self, worker: ImaginaryWorker) -> None:
        """A heartbeat, and the next ones, unless the worker stands still."""
        if worker.alive:
            if self.now >= worker.stopped_until:
                self.to_server(worker, pb.WorkRequest(heartbeat=pb.Heartbeat()))
            self.at(max(worker.heartbeat_seconds, 0.01), lambda: self.beat(worker))

    def _arrival(self, worker: ImaginaryWorker, direction: str) -> float:
        """When a message that is sent now arrives: messages of one stream in one direction keep their order."""
        arrival = self.now + self.random.expovariate(1 / self.faults.latency)
        arrival = max(self._arrivals.get((worker.worker, direction), 0.0), arrival)
        self._arrivals[worker.worker, direction] = arrival
        return arrival - self.now

    def to_worker(self, worker: ImaginaryWorker, message: pb.WorkResponse) -> None:
        """A message on its way to a worker, which takes it when it is through with those before."""

        def arrive() -> None:
            if worker.alive and worker.heard:
                worker.inbox.append(message)
                if len(worker.inbox) == 1:
                    self._work(worker)

        self.at(self._arrival(worker, "down"), arrive)

    def _work(self, worker: ImaginaryWorker) -> None:
        """Lets a worker take its first message, when it is no longer stopped, and those behind it."""

        def done() -> None:
            if self.now < worker.stopped_until:
                self.at(worker.stopped_until - self.now, done)
            elif worker.alive:
                worker.handle(worker.inbox.popleft())
                if worker.inbox:
                    self._work(worker)

        self.at(worker.seconds(worker.inbox[0]), done)

    def to_server(self, worker: ImaginaryWorker, message: pb.WorkRequest) -> None:
        """A message on its way to the server."""
        run, request = self.run_, frames.unpacked(message)

        def arrive() -> None:
            if self.now < self._stalled_until:
                self.at(self._stalled_until - self.now, arrive)
                return
            if run is None or self.run_ is not run or not worker.heard or self._finished:
                return
            self._received += message.HasField("gradient")
            try:
                run.receive(worker.worker, request)
            except ThalwegError as error:
                raise AssertionError(f"an honest worker was refused: {error}") from error

        self.at(self._arrival(worker, "up"), arrive)
        if message.HasField("gradient") and self.random.random() < self.faults.kinds.get("duplicate", 0.0):
            self.at(self._arrival(worker, "up") + self.random.choice([0.0, 0.0, 0.05]), arrive)

    def _fault(self) -> None:
        kinds = {kind: weight for kind, weight in self.faults.kinds.items() if kind != "duplicate"}
        if not kinds or self.faults.most <= 0:
            return
        self.faults.most -= 1
        kind = self.random.choices(list(kinds), list(kinds.values()))[0]
        getattr(self, f"_fault_{kind}")()
        self.at(self.random.expovariate(1 / self.faults.seconds), self._fault)

    def _some_worker(self) -> ImaginaryWorker | None:
        return self.random.choice(list(self.workers.values())) if self.workers else None

    def _fault_kill(self) -> None:
        worker = self._some_worker()
        if worker:
            self.lose(worker)
            self.at(self.random.uniform(0.01, 0.1), self._replace)

    def _fault_cut(self) -> None:
        """Nothing gets through any more, and neither side is told; later the worker notices and comes back."""
        worker = self._some_worker()
        if worker:
            worker.heard = False
            self.at(self.random.uniform(0.1, 1.0), lambda: self._rejoin_later(worker))

    def _fault_stop(self) -> None:
        """A process stands still, and then goes on as if nothing had been."""
        worker = self._some_worker()
        if worker:
            stopped = self.random.choice([0.05, 0.2, 1.0])
            worker.stopped_until = max(worker.stopped_until, self.now + stopped)

    def _fault_stall(self) -> None:
        """The server's process stands still. Time passes before it hears what was said meanwhile."""
        stalled, run = self.random.choice([0.05, 0.2, 1.0]), self.run_
        if self.now < self._stalled_until:
            return

        def wake() -> None:
            if run and run is self.run_:
                run.tick(stalled)

        self.at(stalled, wake)
        self._stalled_until = self.now + stalled

    def _fault_slow(self) -> None:
        worker = self._some_worker()
        if worker:
            worker.slowness = self.random.choice([0.5, 10.0])

    def _fault_fail(self) -> None:
        """A worker that came late reports that it cannot do its job, and whose fault it takes that for."""
        if self.run_ and self.run_.coordinator.version:
            worker = self.join()
            scope = self.random.choice([pb.Failure.SCOPE_UNSPECIFIED, pb.Failure.SCOPE_JOB, pb.Failure.SCOPE_NODE])
            worker.fails = pb.Failure(problem="imaginary", scope=scope)
            # Where many fail at their tasks, the job rightly fails.
            if scope == pb.Failure.SCOPE_NODE or self._failing < MAX_REPORTS - 1:
                worker.fails_at = self.random.choice(["welcome", "differentiate"])
                self._failing += worker.fails_at == "differentiate" and scope != pb.Failure.SCOPE_NODE

    def _fault_disagree(self) -> None:
        """A worker comes, late, that finds another number of samples."""
        if self.run_ and self.run_.coordinator.plan:
            self.join().disagrees = True

    def _fault_odd(self) -> None:
        """A worker comes on a machine that computes other bits, after others contributed."""
        if self.run_ and self.run_.telemetry.contributions.applied:
            self.join().odd = True

    def _fault_move(self) -> None:
        """The server goes down, and all workers come back on machines of another kind, which happen to compute the same bits."""
        if self.run_:
            self._crash()
            self.machine = "one kind" if self.machine != "one kind" else "another kind"
            self.moved += 1

    def _fault_hang(self) -> None:
        """Workers that are there take long to make the initial parameters, or hang there for good; later another one comes."""
        for worker in self.workers.values():
            worker.initialize_seconds = self.random.choice([0.0, 3.0, 2 * _MAX_SECONDS])
        self.at(20.0, self._come)

    def _come(self) -> None:
        self.join()

    def _fault_kill_at_start(self) -> None:
        """The fleet says that workers were killed before they did anything, many times."""
        for _ in range(self.random.randint(1, 20)):
            if self.run_ and not self._finished:
                self.killed_at_start += 1
                node = f"node-{self.random.randrange(NODES)}"
                self.run_.worker_exited(Place("imaginary", node, node), "its process died", self.random.random() < 0.8)

    def _fault_scale(self) -> None:
        self.wanted = self.random.randint(1, self._most_workers)
        while len(self.workers) > self.wanted:
            self.lose(self.random.choice(list(self.workers.values())))
        for _ in range(self.wanted - len(self.workers)):
            self.join()

    def _fault_crash(self) -> None:
        """The server goes down now, or at one of the next steps of a write. It may have been about to stop, and said so."""
        if self.run_ and not self._finished and self.random.random() < 0.3:
            self.run_.handle(CheckpointRequested())
        if self.random.random() < 0.5:
            self.disk.crash_after = self.random.randrange(16)
        elif self.run_:
            self._crash()

    def _fault_full(self) -> None:
        self.disk.full = True

        def room() -> None:
            self.disk.full = False

        self.at(self.random.uniform(0.05, 0.5), room)

    def _fault_memory(self) -> None:
        """There is no memory for copies, for a while."""
        self._no_memory = True

        def room() -> None:
            self._no_memory = False

        self.at(self.random.uniform(0.05, 0.5), room)

    def _fault_damage(self) -> None:
        """A bit of the newest checkpoint turns while the server is down."""
        if self.run_:
            self._crash()
            self.disk.damage(_FOLDER)


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
