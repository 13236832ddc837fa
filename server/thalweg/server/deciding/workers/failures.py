"""What goes wrong with a job's workers, whose fault that is, and where the job gets no more of them for a while.

Pure, as the coordinator that asks it: time comes in, nothing is carried out here.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from thalweg.server.deciding.values import Place

# After this many workers in a row failed by a cause that may be the job's, and none contributed, the job fails.
MAX_REPORTS = 5
# After the processes of this many workers in a row died, and none contributed, a job with code of its own fails. It fails sooner
# if they died at one line of the code, and one of them had been started after the death of another.
MAX_DEATHS = 5
_HOW_CODE_KILLS = (
    "code ends its process by a crash in a library, by taking more memory than there is, or by not returning from a call that "
    "holds Python's lock"
)

# How many nodes are remembered: more than a job has workers on, and few enough for workers that lie about where they are.
_MAX_NODES = 1000


class Kind(Enum):
    """What happened to a worker."""

    # Its process ended without a report: killed, as a rule. The next one may live.
    KILLED = auto()
    # It reported a cause that may be the job's.
    REPORTED = auto()
    # It reported a cause that is its node's: its operator may have to repair something there.
    NODE = auto()


# How long a node is left alone, in seconds: the first time, then twice as long each time, up to a maximum.
_SECONDS = {Kind.KILLED: (0.5, 8.0), Kind.REPORTED: (0.5, 8.0), Kind.NODE: (5.0, 60.0)}


def _pause(kind: Kind, times: int) -> float:
    first, longest = _SECONDS[kind]
    return min(first * 2.0 ** min(times - 1, 16), longest)


@dataclass(slots=True)
class _Trouble:
    """What happened on one node since a worker there last contributed something."""

    place: Place
    kind: Kind
    problem: str
    times: int
    until: float


class Failures:
    """Remembers what happened to one job's workers. `now`, in seconds, is to be set before anything else happens at that time.

    `code` is the job's own code, after the path of its field; empty if it has none: then no death fails it.
    """

    def __init__(self, code: str = "") -> None:
        self.now = 0.0
        self._code = code
        self._deaths = 0
        self._lines: Counter[str] = Counter()
        self._dying: set[tuple[str, str]] = set()
        self._troubles: dict[tuple[str, str], _Trouble] = {}
        self._reports = 0
        self._reporting: set[tuple[str, str]] = set()
        self._reported = ""

    def __bool__(self) -> bool:
        """Whether anything went wrong since the workers last contributed something."""
        return bool(self._troubles or self._reports or self._deaths)

    def contributed(self, place: Place) -> None:
        """A worker at a place contributed something."""
        self._reports = self._deaths = 0
        self._reporting.clear()
        self._lines.clear()
        self._dying.clear()
        self._troubles.pop(place.key, None)

    def happened(self, kind: Kind, place: Place, problem: str) -> str:
        """Records what happened to a worker. Gives words for people if it is worth reporting, else nothing."""
        trouble = self._troubles.get(place.key)
        times = trouble.times + 1 if trouble else 1
        seconds = _pause(kind, times)
        self._troubles.pop(place.key, None)
        self._troubles[place.key] = _Trouble(place, kind, problem, times, self.now + seconds)
        if len(self._troubles) > _MAX_NODES:
            del self._troubles[next(iter(self._troubles))]
        if kind is Kind.REPORTED:
            self._reports += 1
            self._reporting.add(place.key)
            self._reported = problem
        # The first few times, then more and more seldom.
        if times > 4 and times & (times - 1):
            return ""
        avoided = f"; the job gets no more workers there for {seconds:.2g} s" if place.fleet else ""
        return _what(self._troubles[place.key]) + avoided

    def failed(self, present: Iterable[Place]) -> str:
        """Why the job fails; empty if it does not. `present` is where it has workers now: those on other nodes may do better."""
        if self._reports < MAX_REPORTS or any(place.key not in self._reporting for place in present):
            return ""
        return f"{self._reports} workers in a row failed before contributing; last error: {self._reported}"

    def died(self, place: Place, problem: str, line: str, present: Iterable[Place], crowd: int) -> str:
        """Records that a worker's process died. Why the job fails; empty if it does not. `present` is as for `failed`.

        `line` is where it was in the job's code, empty if that is unknown. `crowd` is the maximum of workers that were there at
        once: these may all have been stopped at one line, by whoever stopped their machine, so that deaths of more count.
        """
        if not self._code:
            return ""
        self._deaths += 1
        self._dying.add(place.key)
        self._lines[line] += bool(line)
        suffices = self._deaths >= MAX_DEATHS or self._lines[line] > max(crowd, 1)
        if not suffices or any(place.key not in self._dying for place in present):
            return ""
        last = f"the processes of {self._deaths} workers in a row died, and none contributed; the last one: {problem}"
        return f"{self._code}: {last}; {_HOW_CODE_KILLS}"

    def avoided(self) -> tuple[Place, ...]:
        """Where the job is to get no more workers now. A place that no fleet is known for cannot be avoided."""
        troubles = self._troubles.values()
        return tuple(trouble.place for trouble in troubles if trouble.until > self.now and trouble.place.fleet)

    def status(self, now: float) -> str:
        """What keeps the job from having workers that contribute, in words for people; empty if nothing does."""
        if not self._troubles:
            return ""
        latest = next(reversed(self._troubles.values()))
        others = len(self._troubles) - 1
        more = f", and on {others} more node{'' if others == 1 else 's'}" if others else ""
        seconds = min(trouble.until for trouble in self._troubles.values()) - now
        again = f"trying again in {max(1, round(seconds))} s" if seconds > 0 else "trying again"
        return f"{_what(latest)}{more}; {again}"


def _what(trouble: _Trouble) -> str:
    where = trouble.place.name or "an unknown node"
    times = "" if trouble.times == 1 else f", {trouble.times} times"
    if trouble.kind is Kind.KILLED:
        who = "a worker was" if trouble.times == 1 else "workers keep being"
        return f"{who} killed before contributing (on {where}{times}: {trouble.problem})"
    who = "a worker" if trouble.times == 1 else "workers"
    return f"{who} failed on {where}{f' ({trouble.times} times)' if times else ''}: {trouble.problem}"
