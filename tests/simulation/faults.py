"""What goes wrong on an imaginary cluster: each kind of fault is a function of the cluster."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.worker import NODES
from thalweg.server.deciding.events import CheckpointRequested
from thalweg.server.deciding.values import Place
from thalweg.server.deciding.workers.failures import MAX_REPORTS
from thalweg.v1 import parameter_service_pb2 as pb

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

# Longer than any run takes.
FOR_GOOD = 2000.0


@dataclass
class Faults:
    """What goes wrong: each kind by its weight, `most` in all, about every `seconds`. Messages take about `latency` seconds.

    `duplicate` is the probability with which a gradient's chunk arrives twice.
    """

    kinds: dict[str, float] = field(default_factory=dict)
    most: int = 0
    seconds: float = 0.05
    latency: float = 0.001
    duplicate: float = 0.0

    def begin(self, cluster: "Cluster") -> None:
        """Lets things go wrong from now on."""
        if "hang" in self.kinds:
            hang(cluster)
        self._later(cluster)

    def _later(self, cluster: "Cluster") -> None:
        if self.kinds and self.most > 0:
            cluster.at(cluster.random.expovariate(1 / self.seconds), lambda: self._happen(cluster))

    def _happen(self, cluster: "Cluster") -> None:
        self.most -= 1
        kind = cluster.random.choices(list(self.kinds), list(self.kinds.values()))[0]
        (KINDS | SHARD_KINDS | MEMORY_KINDS)[kind](cluster)
        self._later(cluster)


def kill(cluster: "Cluster") -> None:
    """A worker's process is killed, and replaced."""
    worker = cluster.some_worker()
    if worker:
        cluster.lose(worker)
        cluster.at(cluster.random.uniform(0.01, 0.1), cluster.replace)


def cut(cluster: "Cluster") -> None:
    """Nothing gets through any more, and neither side is told; later the worker notices and comes back."""
    worker = cluster.some_worker()
    if worker:
        worker.heard = False
        cluster.at(cluster.random.uniform(0.1, 1.0), lambda: cluster.rejoin_later(worker))


def stop(cluster: "Cluster") -> None:
    """A worker's process stands still, and then goes on as if nothing had been."""
    worker = cluster.some_worker()
    if worker:
        stopped = cluster.random.choice([0.05, 0.2, 1.0])
        worker.stopped_until = max(worker.stopped_until, cluster.now + stopped)


def stall(cluster: "Cluster") -> None:
    """The server's process stands still. Time passes before it hears what was said meanwhile."""
    cluster.stall(cluster.random.choice([0.05, 0.2, 1.0]))


def slow(cluster: "Cluster") -> None:
    """A worker computes slowly from now on."""
    worker = cluster.some_worker()
    if worker:
        worker.slowness = cluster.random.choice([0.5, 10.0])


def fail(cluster: "Cluster") -> None:
    """A worker comes that reports, after others got further, that it cannot do its job, and whose fault it takes that for."""
    if cluster.run_ and cluster.run_.coordinator.version:
        worker = cluster.join()
        scope = cluster.random.choice([pb.Failure.SCOPE_UNSPECIFIED, pb.Failure.SCOPE_JOB, pb.Failure.SCOPE_NODE])
        worker.fails = pb.Failure(problem="imaginary", scope=scope)
        # Where many fail at their tasks, the job rightly fails.
        if scope == pb.Failure.SCOPE_NODE or cluster.failing < MAX_REPORTS - 1:
            worker.fails_at = cluster.random.choice(["welcome", "differentiate"])
            cluster.failing += worker.fails_at == "differentiate" and scope != pb.Failure.SCOPE_NODE


def disagree(cluster: "Cluster") -> None:
    """A worker comes, late, that finds another number of samples."""
    if cluster.run_ and cluster.run_.coordinator.plan:
        cluster.join().disagrees = True


def odd(cluster: "Cluster") -> None:
    """A worker comes on a machine that computes other bits, after others contributed."""
    if cluster.run_ and cluster.run_.telemetry.contributions.applied:
        cluster.join().odd = True


def move(cluster: "Cluster") -> None:
    """The server goes down, and all workers come back on machines of another kind, which happen to compute the same bits."""
    if cluster.run_:
        cluster.crash()
        cluster.machine = "one kind" if cluster.machine != "one kind" else "another kind"
        cluster.moved += 1


def hang(cluster: "Cluster") -> None:
    """Workers that are there take long to make the initial parameters, or hang there for good; later another one comes."""
    for worker in cluster.workers.values():
        worker.initialize_seconds = cluster.random.choice([0.0, 3.0, FOR_GOOD])
    cluster.at(20.0, cluster.join)


def kill_at_start(cluster: "Cluster") -> None:
    """The fleet says that workers were killed before they did anything, many times."""
    for _ in range(cluster.random.randint(1, 20)):
        if cluster.run_ and not cluster.finished:
            cluster.killed_at_start += 1
            node = f"node-{cluster.random.randrange(NODES)}"
            place, killed = Place("imaginary", node, node), cluster.random.random() < 0.8
            if killed:
                cluster.run_.worker_died(place, "its process died", "nets.py:9 in loss")
            cluster.run_.worker_exited(place, "its process died", killed)


def scale(cluster: "Cluster") -> None:
    """Somebody wants another number of workers."""
    cluster.scale(cluster.random.randint(1, cluster.max_workers))


def release(cluster: "Cluster") -> None:
    """Somebody empties nodes: their workers are let go, after their tasks or at once, and others come elsewhere."""
    if cluster.run_ and not cluster.finished:
        leaving = set(cluster.random.sample(range(NODES), cluster.random.randint(1, NODES)))
        nodes = {f"node-{number}" for number in leaving}
        cluster.run_.let_go(lambda place: place.node in nodes, "its node is being emptied", cluster.random.random() < 0.3)


def crash(cluster: "Cluster") -> None:
    """The server goes down now, or at one of the next steps of a write. It may have been about to stop, and said so."""
    if cluster.run_ and not cluster.finished and cluster.random.random() < 0.3:
        cluster.run_.handle(CheckpointRequested())
    if cluster.random.random() < 0.5:
        cluster.disk.crash_after = cluster.random.randrange(16)
    elif cluster.run_:
        cluster.crash()


def full(cluster: "Cluster") -> None:
    """The disk is full for a while."""
    cluster.disk.full = True

    def room() -> None:
        cluster.disk.full = False

    cluster.at(cluster.random.uniform(0.05, 0.5), room)


def memory(cluster: "Cluster") -> None:
    """There is no memory for copies, for a while."""
    cluster.no_memory = True

    def room() -> None:
        cluster.no_memory = False

    cluster.at(cluster.random.uniform(0.05, 0.5), room)


def damage(cluster: "Cluster") -> None:
    """A bit of the newest checkpoint turns while the server is down."""
    if cluster.run_:
        cluster.crash()
        cluster.damage_checkpoint()


def kill_shard(cluster: "Cluster") -> None:
    """A shard's process is killed. Sooner or later, if at all, another one is there: as a rule at its address."""
    shard = cluster.some_shard()
    if shard:
        shard.die()
        del cluster.shards[str(shard.address)]
        number = cluster.random.choice([shard.number, shard.number, next(cluster.shard_numbers)])
        cluster.at(cluster.random.choice([0.01, 0.2, 2.0, FOR_GOOD]), lambda: cluster.add_shard(number))


def add_shard(cluster: "Cluster") -> None:
    """Another shard comes."""
    cluster.add_shard(next(cluster.shard_numbers))


def cut_shard(cluster: "Cluster") -> None:
    """The connection between a shard and the server breaks; the shard comes back. Perhaps the server does not notice at first."""
    shard = cluster.some_shard()
    if shard and shard.stream:
        shard.stream.cut(noticed=cluster.random.random() < 0.7)


def cut_guest(cluster: "Cluster") -> None:
    """The connection between a worker and a shard breaks."""
    shard = cluster.some_shard()
    if shard and shard.guests:
        cluster.random.choice(shard.guests).cut()


def stop_shard(cluster: "Cluster") -> None:
    """A shard's process stands still. If that takes long, the server takes it for lost, and it finds out when it goes on."""
    shard = cluster.some_shard()
    if shard:
        stopped = cluster.random.choice([0.05, 0.2, 1.0])
        shard.stopped_until = max(shard.stopped_until, cluster.now + stopped)


def attach_half(cluster: "Cluster") -> None:
    """A worker comes on the server's machine that takes the offer of shared memory half."""
    worker = cluster.join()
    worker.near, worker.attaches = True, cluster.random.choice(["silent", "another token", "dies", "dies prepared"])


def no_descriptors(cluster: "Cluster") -> None:
    """The server's process has no descriptors for workers that want memory, for a while."""
    if cluster.memory.listener:
        cluster.memory.listener.failing_until = cluster.now + cluster.random.choice([0.05, 0.5, 20.0])


def no_shared_memory(cluster: "Cluster") -> None:
    """There is no memory that could be shared, for a while."""
    cluster.memory.scarce = True

    def room() -> None:
        cluster.memory.scarce = False

    cluster.at(cluster.random.uniform(0.05, 0.5), room)


_ALL = (kill, cut, stop, slow, stall, scale, release, crash, full, damage, memory, fail, disagree, odd, move, hang, kill_at_start)
KINDS: dict[str, Callable[["Cluster"], None]] = {each.__name__: each for each in _ALL}
SHARD_KINDS: dict[str, Callable[["Cluster"], None]] = {
    each.__name__: each for each in (kill_shard, add_shard, cut_shard, cut_guest, stop_shard)
}
MEMORY_KINDS: dict[str, Callable[["Cluster"], None]] = {
    each.__name__: each for each in (attach_half, no_descriptors, no_shared_memory)
}
