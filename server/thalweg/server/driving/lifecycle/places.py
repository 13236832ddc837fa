"""Which jobs may have workers, how the fleets' slots are divided among them, and why a job has none."""

import asyncio
from collections.abc import Callable, Mapping

from thalweg.contract.code import entry_points
from thalweg.contract.states import NO_WORKERS
from thalweg.contract.worker_size import size_of
from thalweg.server.deciding.allotment.fleets import Fleets
from thalweg.server.deciding.allotment.queue import Candidate, Queue, choose
from thalweg.server.deciding.allotment.room import Room
from thalweg.server.driving.job.driver import JobDriver
from thalweg.v1 import job_pb2

# Sharing workers out takes this share of the time at most, except where it takes less than that many seconds.
_ALLOT_SHARE, _QUICK_SECONDS = 0.2, 0.005


class Places:
    """The places of one server, which runs `max_running` jobs at a time; 0 for no limit. Belongs to its event loop.

    `runs` are those of the jobs that have not ended, in the order in which the jobs were accepted; `keeps` says whether a job
    keeps its place as one that has begun. Without `allow_code`, jobs with code of their own get no workers.
    """

    def __init__(
        self, max_running: int, runs: Mapping[str, JobDriver], keeps: Callable[[str], bool], *, allow_code: bool = False
    ) -> None:
        self.max_running = max_running
        self._allow_code = allow_code
        self.fleets = Fleets()
        self._runs = runs
        self._keeps = keeps
        self._queue = Queue({}, {})
        self._allotting: asyncio.TimerHandle | None = None
        self._allot_from = 0.0  # when there is time for it again

    def has(self, job_id: str) -> bool:
        """Whether a job may have workers now."""
        return job_id in self._queue.places

    def allot(self) -> None:
        """Gives places and shares the workers out anew. To be called whenever jobs or fleets have changed.

        With thousands of jobs that takes long: then it happens once for all changes of some time.
        """
        loop = asyncio.get_running_loop()
        if self._allotting is None and loop.time() < self._allot_from:
            self._allotting = loop.call_at(self._allot_from, self._allot)
        elif self._allotting is None:
            self._allot()

    def _allot(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._allotting = None
        self.choose()
        self.fleets.allot([self._runs[job_id] for job_id in self._queue.places if self.permits(self._runs[job_id].job)])
        took = loop.time() - began
        if took > _QUICK_SECONDS:
            self._allot_from = loop.time() + took / _ALLOT_SHARE

    def close(self) -> None:
        """Shares nothing out later."""
        if self._allotting:
            self._allotting.cancel()

    def choose(self) -> None:
        """Gives the places anew."""
        self._queue = choose(self.max_running, [self._candidate(run.job) for run in self._runs.values() if not run.job.paused])

    def _candidate(self, job: job_pb2.Job) -> Candidate:
        # A job that was paused has given up its place, and waits for one like a job that has not begun.
        begun = (job.state == job_pb2.JOB_STATE_RUNNING and self.has(job.id)) or self._keeps(job.id)
        servable = not self.fleets.attending or (self.permits(job) and self.fleets.have_room(job.spec))
        return Candidate(job.id, job.spec.priority, begun, servable)

    def permits(self, job: job_pb2.Job) -> bool:
        """Whether the server lets a job's workers run its code; it may have been accepted before the server was started again."""
        return self._allow_code or not entry_points(job.spec)

    def explain(self, job: job_pb2.Job, run: JobDriver) -> None:
        """Says in a job why its run has no workers."""
        job.waiting_for, job.status = self.waiting(run)

    def waiting(self, run: JobDriver) -> tuple[job_pb2.WaitingFor.ValueType, str]:
        """Why a job without workers has none, as far as the queue, the fleets and its earlier workers tell."""
        job = run.job
        if job.paused:
            return job_pb2.WAITING_FOR_SCALING, f"paused; `thalweg scale {job.id} N` resumes it with N workers"
        if job.id in self._queue.before:
            before = self._queue.before[job.id]
            ahead = f"{before} job{'' if before == 1 else 's'} ahead"
            return job_pb2.WAITING_FOR_PLACE, f"queued: {ahead} (this server runs {self.max_running} at a time)"
        if prohibition := self.prohibition(job):
            return job_pb2.WAITING_FOR_PERMISSION, f"{NO_WORKERS}: {prohibition}"
        if not self.fleets.attending:
            no_fleet = "no fleet is connected to this server; start one with `thalweg fleet`"
            return job_pb2.WAITING_FOR_FLEET, f"{NO_WORKERS}: {no_fleet}"
        if not self.fleets.have_room(job.spec):
            return job_pb2.WAITING_FOR_SLOTS, f"{NO_WORKERS}: no fleet has the {size_of(job.spec)} that each worker needs"
        if not self.fleets.have_open_room(job.spec):
            closed = "the nodes that have room for a worker are cordoned; `thalweg uncordon` opens them"
            return job_pb2.WAITING_FOR_SLOTS, f"{NO_WORKERS}: {closed}"
        if trouble := run.trouble():
            return job_pb2.WAITING_FOR_NODE, f"{NO_WORKERS}: {trouble}"
        return job_pb2.WAITING_FOR_WORKERS, NO_WORKERS

    def prohibition(self, job: job_pb2.Job) -> str:
        """Why a job's code may not run, and what to do; empty if it may, if the job has none, or if there are no fleets yet."""
        if not self.permits(job):
            return "this server runs no jobs with code; restart it with `thalweg serve --allow-code`"
        if not self.fleets.attending or self.fleets.admit(job.spec):
            return ""
        if any(fleet.allow_code for fleet in self.fleets.attending):
            option = "--allow-code --allow-requirements"
            return f"no fleet installs packages for jobs (code.requirements); start one with `thalweg fleet {option}`"
        option = "--allow-code --allow-requirements" if job.spec.code.requirements else "--allow-code"
        return f"no fleet allows code; start one with `thalweg fleet {option}`"

    def shortage_of_slots(self, job: job_pb2.Job) -> str:
        """That the fleets have not as many CPU slots or GPUs as a job's workers take, in words for people; empty if they have."""
        size, wanted = size_of(job.spec), job.spec.training.workers
        if job.paused:
            return ""
        if not self.fleets.attending:
            return "no fleet is connected to this server; workers start when one does"
        if prohibition := self.prohibition(job):
            return prohibition
        fleets = self.fleets.admit(job.spec)
        room = sum(Room(fleet.by_node).take(size, wanted) for fleet in fleets)
        if room >= wanted:
            return ""
        have = f"{sum(fleet.slots for fleet in fleets)} CPU slots"
        if size.gpus:
            gpus = sum(node.gpus for fleet in fleets for node in fleet.by_node)
            have += f" and {gpus} GPU{'' if gpus == 1 else 's'}"
        return f"the fleets have {have}, room for {room} of the {wanted} workers; more start when there is room"
