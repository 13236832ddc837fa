"""The course of `thalweg train`, to its end, a failure or a Ctrl-C."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from thalweg.client.cli.bytes_bar import bytes_bar
from thalweg.client.cli.display import Display, JobView, display
from thalweg.client.cli.follow import attend, follow
from thalweg.client.cli.signals import Inbox, InterruptedBySignalError
from thalweg.client.client import Client
from thalweg.client.embedded import Embedded
from thalweg.client.errors import LocalError
from thalweg.client.job import Job
from thalweg.client.jobfile import JobFile
from thalweg.client.records import ENDED, Event, Result, StateChanged
from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import state_name
from thalweg.contract.worker_size import size_of

_KEPT = "parameters.safetensors"
# What a job waits for while its fleet starts, and then its first worker.
_USUAL = ("fleet", "workers")


@dataclass
class Outcome:
    """The outcome of a job.

    `error` is why it did not succeed, if nobody cancelled it; `problems` are messages for the user; `interruption` is set if a
    signal ended it. `weights` is None if there are none, or if they could not be written.
    """

    result: Result
    error: str
    weights: Path | None = None
    problems: list[str] = field(default_factory=list)
    interruption: InterruptedBySignalError | None = None
    picture: JobView = field(default_factory=JobView)


class Training:
    """One job, from its submission or resumption to its weights. Signals come through `inbox`."""

    def __init__(self, client: Client, inbox: Inbox, weights: Path | None, embedded: Embedded | None = None) -> None:
        self._client = client
        self._inbox = inbox
        self._weights = weights
        self._embedded = embedded

    def run(self, loaded: JobFile) -> Outcome:
        """Trains. Raises ThalwegError if the job is not accepted, or the server is lost."""
        with bytes_bar() as bar:
            job = attend(lambda: self._client.submit(loaded, progress=bar), self._inbox)
        return self._attended(job, [])

    def resume(self, job_id: str, max_seconds: float | None = None) -> Outcome:
        """Resumes a job that did not succeed, with another time limit if one is given, and trains.

        Raises ThalwegError if that is impossible, or the server is lost.
        """
        return self._attended(*attend(lambda: self._taken_up(job_id, max_seconds), self._inbox))

    def _taken_up(self, job_id: str, max_seconds: float | None) -> tuple[Job, list[Event]]:
        """A resumed job, and its earlier events."""
        job = self._client.job(job_id)
        if self._embedded and state_name(job.message.state) not in ENDED:
            raise LocalError(f"job {job_id} is already running; thalweg watch {job_id}{self._embedded.place} shows it")
        past = job.history()
        job.resume(max_seconds)
        return job, past

    def _attended(self, job: Job, past: list[Event]) -> Outcome:
        """Shows a job from its earlier events on, and collects its outcome."""
        with display(job.id) as screen:
            for event in past:
                screen.picture.take(event)
            try:
                self._start_fleet(job, screen)
                after = past[-1].sequence if past else 0
                follow(job, self._inbox, lambda event: screen.show(self._in_place(event)), after, screen.say)
                outcome = self._ended(job)
            except InterruptedBySignalError as interruption:
                screen.say("ending the job")
                outcome = self._interrupted(job, interruption)
        outcome.picture = screen.picture
        return outcome

    def _start_fleet(self, job: Job, screen: Display) -> None:
        if self._embedded is None:
            return
        screen.say("starting Ray")
        try:
            size = size_of(job.spec)
            self._embedded.start_fleet(job.spec.training.workers * size.slots, size.gpus, self._inbox.check)
        except ThalwegError:
            job.cancel()
            raise

    def _in_place(self, event: Event) -> Event:
        """An event for this display: while the fleet is being started, that the job waits for one is left out."""
        if self._embedded and isinstance(event, StateChanged) and event.state == "QUEUED" and event.waiting_for in _USUAL:
            return replace(event, status="waiting for the first worker")
        return event

    def _ended(self, job: Job) -> Outcome:
        # A job that was ended by its time limit has no error, and says why it has ended.
        outcome = Outcome(job.last_result(), job.message.error or job.message.status)
        self._keep(job, outcome)
        return outcome

    def _interrupted(self, job: Job, interruption: InterruptedBySignalError) -> Outcome:
        """Ends the job and keeps its parameters, unless a second signal arrives."""
        outcome = Outcome(job.last_result(), "", interruption=interruption)
        try:
            attend(job.cancel, self._inbox)
            outcome.result = job.last_result()
            self._keep(job, outcome)
        except InterruptedBySignalError:
            outcome.problems.append("interrupted again; the parameters so far were not written")
            if self._embedded:
                self._embedded.abandon(job.id)
        except ThalwegError as error:
            outcome.problems += str(error).splitlines()
        return outcome

    def _keep(self, job: Job, outcome: Outcome) -> None:
        """Writes the weights, if there are any."""
        if not outcome.result.weights_sha256:
            return
        if self._embedded and self._weights is None:
            # The embedded server has written them already.
            outcome.weights = (self._embedded.folder / "jobs" / job.id / _KEPT).absolute()
            return
        path = (self._weights or Path(f"{job.id}.safetensors")).absolute()
        try:
            attend(lambda: job.save(path), self._inbox)
            outcome.weights = path
        except ThalwegError as error:
            outcome.problems += str(error).splitlines()
