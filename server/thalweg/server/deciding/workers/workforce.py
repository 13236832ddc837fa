"""The workers of one job: who is there, when each was heard last, and what follows when something goes wrong with one.

Pure, as the coordinator that asks it: time comes in, nothing is carried out here.
"""

from collections.abc import Iterator

from thalweg.server.deciding.decisions import Avoid, Decision, Finish, Tell
from thalweg.server.deciding.values import Place, WorkerId
from thalweg.server.deciding.workers.failures import Failures, Kind
from thalweg.v1 import job_pb2

# Stands for the workers of a run before this one.
_EARLIER_RUN: WorkerId = -1


class Workforce:
    """The workers that are there; `prepared` are those that know the model and the data, in the order in which they came to that.

    `contributed` says that workers of an earlier run have contributed; `code` is the job's own code, if it has some. The time, in
    seconds, is to be set before anything else happens at that time.
    """

    def __init__(self, contributed: bool, code: str = "") -> None:
        self.prepared: dict[WorkerId, None] = {}
        self._now = 0.0
        self._heard: dict[WorkerId, float] = {}
        self._places: dict[WorkerId, Place] = {}
        self._failures = Failures(code)
        self._avoided: tuple[Place, ...] = ()
        # The maximum of workers that were there at once since one contributed.
        self._crowd = 0
        # The first two workers that contributed anything: enough to tell whether another one than some worker has.
        self._contributors: set[WorkerId] = {_EARLIER_RUN} if contributed else set()

    def set_time(self, now: float) -> None:
        """Time has passed."""
        self._now = self._failures.now = now

    def __contains__(self, worker: object) -> bool:
        """Whether a worker is there."""
        return worker in self._heard

    def __bool__(self) -> bool:
        """Whether there are workers."""
        return bool(self._heard)

    def __iter__(self) -> Iterator[WorkerId]:
        """The workers that are there now."""
        return iter(list(self._heard))

    def join(self, worker: WorkerId, place: Place) -> None:
        """A worker came."""
        self._heard[worker] = self._now
        self._places[worker] = place
        self._crowd = max(self._crowd, len(self._places))

    def hear(self, worker: WorkerId | None) -> None:
        """A worker said something, if it is there."""
        if worker in self._heard:
            self._heard[worker] = self._now

    def silence(self, worker: WorkerId, now: float) -> float:
        """For how many seconds a worker that is there has said nothing."""
        return max(0.0, now - self._heard[worker])

    def place(self, worker: WorkerId) -> Place:
        """Where a worker is that is there."""
        return self._places[worker]

    def leave(self, worker: WorkerId) -> bool:
        """A worker that was there is gone. Whether it was prepared."""
        del self._heard[worker], self._places[worker]
        return self.prepared.pop(worker, 0) is None

    def silent(self, seconds: float, missed: float) -> list[WorkerId]:
        """Those that have said nothing for some seconds. For `missed` seconds before now nobody listened to them."""
        if missed:
            self._heard = {worker: min(self._now, heard + missed) for worker, heard in self._heard.items()}
        return [worker for worker, heard in self._heard.items() if self._now - heard > seconds]

    def others_contributed(self, worker: WorkerId) -> bool:
        """Whether another worker than this one has contributed."""
        return bool(self._contributors - {worker})

    def contributed(self, worker: WorkerId) -> list[Decision]:
        """A worker contributed: what follows for those that failed."""
        if len(self._contributors) < 2:
            self._contributors.add(worker)
        self._crowd = len(self._places)
        if not self._failures or worker not in self._places:
            return []
        self._failures.contributed(self._places[worker])
        return self._avoid()

    def failed(self, kind: Kind, place: Place, problem: str) -> list[Decision]:
        """Something went wrong with a worker at a place: its node is avoided for a while, unless the job fails."""
        text = self._failures.happened(kind, place, problem)
        error = self._failures.failed(self._places.values())
        if error:
            return [Finish(job_pb2.JOB_STATE_FAILED, error)]
        notices: list[Decision] = [Tell(text)] if text else []
        return notices + self._avoid()

    def died(self, place: Place, problem: str, line: str) -> list[Decision]:
        """The process of a worker at a place died, perhaps at a known line of the job's code: perhaps the job fails."""
        error = self._failures.died(place, problem, line, self._places.values(), self._crowd)
        return [Finish(job_pb2.JOB_STATE_FAILED, error)] if error else []

    def avoid_less(self) -> list[Decision]:
        """What follows when nodes have been avoided for long enough."""
        return self._avoid() if self._avoided else []

    def _avoid(self) -> list[Decision]:
        avoided = self._failures.avoided()
        if avoided == self._avoided:
            return []
        self._avoided = avoided
        return [Avoid(avoided)]

    def trouble(self, now: float) -> str:
        """What keeps the job from having workers that contribute, in words for people; empty if nothing does."""
        return self._failures.status(now)
