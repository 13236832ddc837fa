"""A step's time by discrete simulation: each piece of each gradient waits for the worker, the links and the server that it needs.

The stages and their costs are those of `model.py`; what is left to the simulation is the waiting. Nothing is random.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

from benchmarks.scaling.model import Model

# Pieces of a step beyond which some are put together: that number takes some seconds.
_MAX_PIECES = 20_000

_Act = Callable[[], object]


class _Work(NamedTuple):
    """Something that takes a resource for some seconds."""

    seconds: float
    began: _Act | None
    done: _Act | None


class Clock:
    """Simulated time: what is to happen, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, _Act]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, act: _Act) -> None:
        """Has something happen after some seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), act))

    def run(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Until it is enough, or nothing more is to happen."""
        while self._events and not enough():
            self.now, _, act = heapq.heappop(self._events)
            act()


class Cores:
    """What resources share that compute on one machine: a number of them run at a time, in turn. None for no such bound."""

    def __init__(self, count: int | None) -> None:
        self._free = count
        self._ready: deque[Resource] = deque()

    def ask(self, resource: "Resource") -> None:
        """A resource has work, and runs as soon as it may."""
        if self._free is None:
            resource.run()
        elif self._free:
            self._free -= 1
            resource.run()
        else:
            self._ready.append(resource)

    def give_back(self) -> None:
        """A resource is through with a piece of work."""
        if self._free is None:
            return
        if self._ready:
            self._ready.popleft().run()
        else:
            self._free += 1


class Resource:
    """A thread or a link: does one thing at a time, and serves flows in turn, as event loops do, and TCP on a link."""

    def __init__(self, clock: Clock, cores: Cores) -> None:
        self._clock, self._cores = clock, cores
        self._flows: dict[Hashable, deque[_Work]] = {}
        self._turns: deque[Hashable] = deque()
        self._busy = False

    def put(self, flow: Hashable, seconds: float, done: _Act | None = None, began: _Act | None = None) -> None:
        """Queues work after that of the same flow. `began` and `done` are called when it begins and ends."""
        waiting = self._flows.setdefault(flow, deque())
        if not waiting:
            self._turns.append(flow)
        waiting.append(_Work(seconds, began, done))
        if not self._busy:
            self._busy = True
            self._cores.ask(self)

    def run(self) -> None:
        """Does the next thing."""
        flow = self._turns.popleft()
        waiting = self._flows[flow]
        work = waiting.popleft()
        if waiting:
            self._turns.append(flow)
        if work.began:
            work.began()
        self._clock.after(work.seconds, partial(self._end, work.done))

    def _end(self, done: _Act | None) -> None:
        self._busy = False
        self._cores.give_back()
        if done:
            done()
        if self._turns and not self._busy:
            self._busy = True
            self._cores.ask(self)


class Simulation:
    """A few steps of a training, from all workers having the parameters on."""

    def __init__(self, model: Model, most_pieces: int = _MAX_PIECES) -> None:
        job, clock = model.training, Clock()
        self.model, self.clock = model, clock
        self.workers = job.working
        self.contributions = self.workers * job.gradients
        # Each piece stands for `together` of them.
        self.pieces = max(job.shares, min(job.chunks, most_pieces // self.contributions))
        self.together = job.chunks / self.pieces
        cores, plenty = Cores(model.network.cores), Cores(None)

        def resources(count: int, cores: Cores) -> list[Resource]:
            return [Resource(clock, cores) for _ in range(count)]

        self._worker, self._server = resources(self.workers, cores), resources(job.shares, cores)
        self._from_worker, self._to_worker = resources(self.workers, plenty), resources(self.workers, plenty)
        self._from_server, self._to_server = resources(job.shares, plenty), resources(job.shares, plenty)
        self._came = [0] * self.pieces
        self._had = [0] * self.workers
        self._computed = [0] * self.workers
        self._updated = self._ready = 0
        self.ends: list[float] = []

    def seconds(self, steps: int = 2) -> float:
        """The mean of a number of steps after a first one."""
        for worker in range(self.workers):
            self._compute(worker)
        # Those that have the last parameters first compute on meanwhile, as in any other step.
        self.clock.run(lambda: len(self.ends) > steps)
        return (self.ends[-1] - self.ends[0]) / steps

    def _holder(self, piece: int) -> int:
        """The server that holds a piece. The last one decides."""
        return piece * self.model.training.shares // self.pieces

    def _compute(self, worker: int) -> None:
        """A microbatch of a worker; after the last one it sends their result."""
        self._computed[worker] += 1
        last = self._computed[worker] == self.model.tasks_a_step
        then = partial(self._send if last else self._compute, worker)
        work = partial(self._worker[worker].put, "task", self.model.busy, then)
        if self.model.asleep:
            self.clock.after(self.model.asleep, work)
        else:
            work()

    def _send(self, worker: int) -> None:
        self._computed[worker] = 0
        for _ in range(self.model.training.gradients):
            for piece in range(self.pieces):
                written = partial(self._up, worker, piece)
                self._worker[worker].put("task", self.together * self.model.worker_writes, written)

    def _up(self, worker: int, piece: int) -> None:
        holder = self._holder(piece)
        out, into = self._from_worker[worker], self._to_server[holder]
        self._travel(self.together * self.model.up, out, into, holder, worker, partial(self._read, worker, piece))

    def _travel(self, size: float, out: Resource, into: Resource, to: int, sender: int, there: _Act) -> None:
        """Bytes flow through two links, the second one as soon as the first."""
        seconds, latency = size / self.model.network.bandwidth, self.model.network.latency
        out.put(to, seconds, began=partial(into.put, sender, seconds, partial(self.clock.after, latency, there)))

    def _read(self, worker: int, piece: int) -> None:
        """A server takes a piece, and adds it to those that came before."""
        holder = self._holder(piece)
        cost = self.model.server_reads + (self.model.server_adds if self._came[piece] else 0.0)
        self._came[piece] += 1
        last = self._came[piece] == self.contributions
        then = partial(self._update, piece) if last else None
        if holder == self.model.training.shares - 1:
            self._server[holder].put(("in", worker), self.together * cost, then)
        else:
            told = partial(self.clock.after, self.model.network.latency, partial(self._hear, holder, then))
            self._server[holder].put(("in", worker), self.together * (cost + self.model.announces), told)

    def _hear(self, shard: int, then: _Act | None) -> None:
        """The server that decides hears of a piece that came to a shard, and the shard of what is decided."""
        decided = partial(self.clock.after, self.model.network.latency, then) if then else None
        self._server[-1].put(("shard", shard), self.together * self.model.announces, decided)

    def _update(self, piece: int) -> None:
        self._came[piece] = 0
        cost = self.together * self.model.server_updates
        self._updated += 1
        if self._updated == self.pieces:
            self._updated = 0
            cost += self.model.constants.server_step
        self._server[self._holder(piece)].put("update", cost, partial(self._answer, piece))

    def _answer(self, piece: int) -> None:
        """A server writes a piece of the new parameters for all workers; the last of its pieces with the task."""
        holder = self._holder(piece)
        last = piece + 1 == self.pieces or self._holder(piece + 1) != holder
        cost = self.together * self.model.server_writes + (self.model.joins if last else 0.0)
        for worker in range(self.workers):
            self._server[holder].put(("out", worker), cost, partial(self._down, holder, worker))

    def _down(self, holder: int, worker: int) -> None:
        out, into = self._from_server[holder], self._to_worker[worker]
        self._travel(self.together * self.model.down, out, into, worker, holder, partial(self._take, worker))

    def _take(self, worker: int) -> None:
        """A worker takes a piece; with the last one, it has the next step's parameters."""
        cost = self.together * self.model.worker_reads
        self._worker[worker].put("in", cost, partial(self._has, worker))

    def _has(self, worker: int) -> None:
        self._had[worker] += 1
        if self._had[worker] < self.pieces:
            return
        self._had[worker] = 0
        self._ready += 1
        if self._ready == self.workers:
            self._ready = 0
            self.ends.append(self.clock.now)
        self._compute(worker)


def simulate(model: Model, steps: int = 2) -> float:
    """The seconds of a step; of a whole round, if steps are local."""
    return Simulation(model).seconds(steps)
