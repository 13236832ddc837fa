"""Who has which tasks, since when, and how fast they are. Knows nothing of a task but its size."""

import bisect
import itertools
import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

from thalweg.server.deciding.values import WorkerId

T = TypeVar("T", bound=Hashable)

# A worker that takes this many times as long as is usual is a straggler: an idle worker gets its tasks too.
STRAGGLER_MULTIPLE = 4.0
# Below that, waiting costs less than a second answer.
_MIN_PATIENCE_SECONDS = 0.03
# How long a task may take as long as nothing is known of how long tasks take.
_FIRST_PATIENCE_SECONDS = 5.0
_REMEMBERED = 64
# Workers whose speeds differ by less than this factor get equal shares: differences as small are noise.
_ALIKE = 1.6
# A worker's speed is the median of its latest measurements, at most the first number of them: a short disturbance does not
# change it. With fewer than the second number it is unknown. The very first one does not count: nothing is in the caches yet.
_MEASUREMENTS, _MIN = 9, 5
# A worker that gets no tasks because it was slow counts as twice as fast after this time, so that it is tried again.
_FORGIVENESS_SECONDS = 2.0


class Pace(NamedTuple):
    """How a worker does: its `rate`, in units of size per second, None if it is not known; its tasks, and for how many seconds it
    has owed an answer to the first of them; and the fraction of its time in which it had tasks.
    """

    rate: float | None
    tasks: int
    task_seconds: float
    busy: float


class _Hand(Generic[T]):
    """One worker's tasks, in the order in which it carries them out, and what it did since it was idle."""

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.tasks: dict[T, float] = {}
        self.came = now
        self.since = now
        self.busy_since = now
        # The seconds for which it was busy before.
        self.busy = 0.0
        self.done = 0.0
        self.rate: float | None = None
        self.rates: deque[float] = deque(maxlen=_MEASUREMENTS)
        self.warm = False
        self.passed_over = False
        self.rated = now
        # Whether it gets no more tasks.
        self.retired = False


def no_paces() -> deque[float]:
    """Where the latest tasks' seconds per unit of size are remembered."""
    return deque(maxlen=_REMEMBERED)


class Assignments(Generic[T]):
    """The tasks that workers have. `now`, in seconds, is to be set before anything else happens at that time.

    `paces` may be shared with assignments of the same kind that follow these.
    """

    def __init__(self, paces: deque[float] | None = None) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._hands: dict[WorkerId, _Hand[T]] = {}
        # The numbers of those that have nothing to do, in order, and the workers by number. No set: one that was large once is
        # looked through as a whole, however few are left in it.
        self._idle: list[int] = []
        self._numbered: dict[int, WorkerId] = {}
        # Those that have tasks, by the time since which they have not answered: at a message, only the first are looked at.
        self._busy: OrderedDict[WorkerId, _Hand[T]] = OrderedDict()
        self._smallest = math.inf
        self._holders: dict[T, list[WorkerId]] = {}
        self._paces = no_paces() if paces is None else paces

    def add(self, worker: WorkerId) -> None:
        """A worker came."""
        hand = self._hands[worker] = _Hand(next(self._numbers), self.now)
        self._numbered[hand.number] = worker
        self._idle.append(hand.number)

    def retire(self, worker: WorkerId) -> None:
        """A worker is to carry out the tasks that it has, and to get no more: it is not idle any more. Nothing, if it is gone."""
        hand = self._hands.get(worker)
        if hand and not hand.retired:
            hand.retired = True
            if not hand.tasks:
                self._not_idle(hand)

    def remove(self, worker: WorkerId) -> list[T]:
        """A worker is gone. Gives the tasks that nobody has any more."""
        hand = self._hands.pop(worker, None)
        if hand is None:
            return []
        if not hand.tasks and not hand.retired:
            self._not_idle(hand)
        del self._numbered[hand.number]
        self._busy.pop(worker, None)
        orphans = []
        for task in hand.tasks:
            self._holders[task].remove(worker)
            if not self._holders[task]:
                del self._holders[task]
                orphans.append(task)
        return orphans

    def give(self, worker: WorkerId, task: T, size: float) -> None:
        """A worker gets a task. Sizes are in any unit."""
        hand = self._hands[worker]
        if not hand.tasks:
            hand.since = hand.busy_since = self.now
            hand.done = 0.0
            self._not_idle(hand)
            self._busy[worker] = hand
        hand.tasks[task] = size
        self._smallest = min(self._smallest, size)
        self._holders.setdefault(task, []).append(worker)

    def answered(self, worker: WorkerId, task: T) -> None:
        """A worker has carried out a task, whatever becomes of the answer."""
        hand = self._hands.get(worker)
        if hand is None or task not in hand.tasks:
            return
        hand.done += hand.tasks.pop(task)
        hand.since = self.now
        if hand.tasks:
            self._busy.move_to_end(worker)
        else:
            del self._busy[worker]
            if not hand.retired:
                bisect.insort(self._idle, hand.number)
            # Several answers may come at once, though they took their time: all of them together tell how fast the worker is.
            hand.busy += self.now - hand.busy_since
            seconds = max(self.now - hand.busy_since, 1e-6)
            self._paces.append(seconds / hand.done)
            self._measured(hand, hand.done / seconds)
        self._holders[task].remove(worker)
        if not self._holders[task]:
            del self._holders[task]

    def _measured(self, hand: _Hand[T], rate: float) -> None:
        if not hand.warm:
            hand.warm = True
            return
        if hand.passed_over:
            # How fast it was before it was tried again says little.
            hand.passed_over = False
            hand.rates.clear()
        hand.rates.append(rate)
        if hand.rate is not None or len(hand.rates) >= _MIN:
            hand.rate = statistics.median(hand.rates)
            hand.rated = self.now

    def tasks(self, worker: WorkerId) -> Iterable[T]:
        """What a worker has not answered yet."""
        hand = self._hands.get(worker)
        return list(hand.tasks) if hand else ()

    def idle(self, worker: WorkerId) -> bool:
        """Whether a worker has nothing to do, and may get something."""
        hand = self._hands.get(worker)
        return hand is not None and not hand.tasks and not hand.retired

    @property
    def any_idle(self) -> bool:
        """Whether there is a worker that has nothing to do."""
        return bool(self._idle)

    def all_idle(self) -> list[WorkerId]:
        """The workers that have nothing to do, in the order in which they came."""
        return [self._numbered[number] for number in self._idle]

    def _not_idle(self, hand: _Hand[T]) -> None:
        del self._idle[bisect.bisect_left(self._idle, hand.number)]

    def overdue(self) -> list[T]:
        """The tasks of workers that take too long. One that several have is overdue when it takes each of them longer still."""
        # This is asked at every message, so the median is computed only if a worker has been busy for long enough.
        first = next(iter(self._busy.values()), None)
        if first is None or self.now - first.since <= _MIN_PATIENCE_SECONDS:
            return []
        pace = statistics.median(self._paces) if self._paces else None

        def patience(size: float) -> float:
            return _FIRST_PATIENCE_SECONDS if pace is None else STRAGGLER_MULTIPLE * pace * size

        least = max(_MIN_PATIENCE_SECONDS, patience(self._smallest))
        slow = itertools.takewhile(lambda hand: self.now - hand.since > least, self._busy.values())

        def is_stuck(hand: _Hand[T], holders: int = 1) -> bool:
            """Whether a worker takes too long for its first task; twice as long, if another one has that too, and so on."""
            return self.now - hand.since > 2.0 ** (holders - 1) * patience(next(iter(hand.tasks.values())))

        def is_overdue(task: T) -> bool:
            holders = self._holders[task]
            return all(is_stuck(self._hands[holder], len(holders)) for holder in holders)

        stuck = sorted(filter(is_stuck, slow), key=lambda hand: hand.number)
        return list(dict.fromkeys(task for hand in stuck for task in hand.tasks if is_overdue(task)))

    def weights(self, workers: Iterable[WorkerId]) -> dict[WorkerId, float]:
        """How much of the work each worker should get: in proportion to its speed, as far as that is known."""
        rates = {worker: self._hands[worker].rate for worker in workers}
        known = [rate for rate in rates.values() if rate is not None]
        if not known or max(known) < _ALIKE * min(known):
            return dict.fromkeys(rates, 1.0)
        usual = statistics.median(known)
        return {worker: usual if rate is None else rate for worker, rate in rates.items()}

    def quick(self, workers: Iterable[WorkerId]) -> list[WorkerId]:
        """Those of the workers that are not known for stragglers, the fastest first."""
        weights = self.weights(workers)
        least = max(weights.values(), default=0.0) / STRAGGLER_MULTIPLE
        return sorted((worker for worker, weight in weights.items() if weight >= least), key=lambda worker: -weights[worker])

    def pace(self, worker: WorkerId) -> Pace | None:
        """How a worker does; None if it is not there."""
        hand = self._hands.get(worker)
        if hand is None:
            return None
        busy = hand.busy + (self.now - hand.busy_since if hand.tasks else 0.0)
        there = self.now - hand.came
        waits = self.now - hand.since if hand.tasks else 0.0
        return Pace(hand.rate, len(hand.tasks), waits, min(1.0, busy / there) if there > 0 else 0.0)

    def passed_over(self, worker: WorkerId) -> None:
        """A worker got no share of the work."""
        hand = self._hands[worker]
        if hand.rate is not None:
            hand.passed_over = True
            hand.rate *= 2 ** ((self.now - hand.rated) / _FORGIVENESS_SECONDS)
            hand.rated = self.now
