"""What the page knows of one job: one watch on the server, shared by all who look at the job."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc

from thalweg.client import records
from thalweg.client.web import views
from thalweg.client.web.changing import Changing
from thalweg.client.web.curves import Curve, Seen, losses
from thalweg.client.web.gateway import Credential, Gateway
from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import ENDED
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# How often what no event tells is asked for, as long as someone looks: what a job waits for, what its workers do.
REFRESH_SECONDS = 2.0
_RETRY_SECONDS = 2.0
# After the last viewer is gone, a feed is kept for a while: pages are reloaded.
LINGER_SECONDS = 30.0
MAX_FEEDS = 200
# Entries of the log of a job that are kept and sent.
MAX_LOG = 200
# The most curves of a job: metrics are the job's own.
MAX_CURVES = 40
# The codes for which another viewer's credential is tried.
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND)


class View:
    """What one viewer has of a feed."""

    def __init__(self, credential: Credential) -> None:
        self.credential = credential
        self.curves: dict[str, Seen] = {}
        self.logged = 0
        self.said: dict[str, Any] = {}


class Feed(Changing):
    """One job: its record, its curves and its log, as of now."""

    def __init__(self, gateway: Gateway, job: job_pb2.Job) -> None:
        super().__init__()
        self.job = job
        self.curves: dict[str, Curve] = {}
        self.workers: dict[str, Any] | None = None
        self.problem = ""
        self.left = time.monotonic()
        self.whole = False
        self.viewers: list[View] = []
        self._gateway = gateway
        self._sequence = 0
        self._log: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MAX_LOG)
        self._tasks: list[asyncio.Task[None]] = []
        self._pausing: asyncio.TimerHandle | None = None

    def enter(self, credential: Credential) -> View:
        """Someone looks from now on. Who may is the caller's to check."""
        view = View(credential)
        self.viewers.append(view)
        if self._pausing:
            self._pausing.cancel()
            self._pausing = None
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._refresh())]
        return view

    def leave(self, view: View) -> None:
        """Someone looks no more."""
        self.viewers.remove(view)
        self.left = time.monotonic()
        if not self.viewers:
            # No calls are made for nobody. The next viewer continues from here.
            self._pausing = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._pause)

    def _pause(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def close(self) -> None:
        """Ends the watch."""
        tasks = self._tasks
        self._pause()
        if self._pausing:
            self._pausing.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def news(self, view: View) -> dict[str, Any]:
        """What a viewer lacks, who is taken to have it then; empty if there is nothing."""
        news: dict[str, Any] = {}
        facts = {"job": views.job(self.job), "workers": self.workers, "problem": self.problem, "whole": self.whole}
        for name, value in facts.items():
            if view.said.get(name) != value:
                news[name] = view.said[name] = value
        curves = {
            name: told
            for name, curve in self.curves.items()
            if (told := curve.news(view.curves.setdefault(name, Seen()))) is not None
        }
        if curves:
            news["curves"] = curves
        log = [entry for sequence, entry in self._log if sequence > view.logged]
        if log:
            news["log"] = log
            view.logged = self._log[-1][0]
        return news

    def _credentials(self) -> Iterator[Credential]:
        """With whose credentials to call, in order."""
        yield from dict.fromkeys(view.credential for view in self.viewers)

    async def _follow(self) -> None:
        """Watches the job, and goes on when a watch breaks off or the job is resumed."""
        while True:
            for credential in list(self._credentials()):
                try:
                    await self._watch(credential)
                    self.problem = ""
                    break
                except ThalwegError as error:
                    self.problem = str(error)
                    if error.code not in _REFUSED:
                        break
            self._say()
            await asyncio.sleep(_RETRY_SECONDS)
            while not self.problem and self.job.state in ENDED:
                # It may be resumed.
                await asyncio.sleep(_RETRY_SECONDS)

    async def _watch(self, credential: Credential) -> None:
        # First what is on record: viewers see when all of it is there.
        for until_now in (True, False):
            async for event in self._gateway.watch(credential, self.job.id, self._sequence, until_now):
                self.problem = ""
                self._take(event)
                self._say()
            if until_now:
                self.whole = True
                self._say()
        self.job = await self._gateway.job(credential, self.job.id)

    async def _refresh(self) -> None:
        """Asks for what no event tells."""
        while True:
            for credential in list(self._credentials()):
                try:
                    self.job = await self._gateway.job(credential, self.job.id)
                    told = None if self.job.state in ENDED else await self._gateway.workers(credential, self.job.id)
                    self.workers = views.workers(told, self.job.spec) if told else None
                    self._say()
                    break
                except ThalwegError as error:
                    # The watch finds out, and says so.
                    if error.code not in _REFUSED:
                        break
            await asyncio.sleep(REFRESH_SECONDS)

    def _take(self, event: pb.Event) -> None:
        self._sequence = event.sequence
        told = records.event(event)
        match told:
            case records.StepsTaken():
                loss = self._curve("loss")
                for point in losses(event.steps_taken):
                    loss.add(*point)
                if self.whole:
                    self.job.progress.CopyFrom(event.steps_taken.progress)
                step = told.first_step + told.steps
                self._curve("samples_per_second").add(step, told.progress.samples_per_second)
                if told.progress.learning_rate is not None:
                    self._curve("learning_rate").add(step, told.progress.learning_rate)
            case records.EpochEnded():
                self._curve("epoch_loss").add(told.step, told.train_loss)
                if told.validation:
                    self._curve("validation_loss").add(told.step, told.validation.loss)
                    accuracy = {} if told.validation.accuracy is None else {"accuracy": told.validation.accuracy}
                    for name, value in (accuracy | dict(told.validation.values)).items():
                        if len(self.curves) < MAX_CURVES:
                            self._curve(f"validation.{name}").add(told.step, value)
            case records.StateChanged() if self.whole:
                # What is on record may be of earlier.
                self.job = event.state_changed.job
        if entry := views.log_entry(told):
            self._log.append((event.sequence, entry))

    def _curve(self, name: str) -> Curve:
        return self.curves.setdefault(name, Curve())


class Feeds:
    """The feeds of all jobs that someone looks at."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._feeds: dict[str, Feed] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    async def of(self, credential: Credential, job_id: str) -> Feed:
        """The feed of a job. Raises ThalwegError if the credential's owner may not see the job, or there are too many feeds."""
        # Whether there is a feed already or not: what one may see, others may not.
        job = await self._gateway.job(credential, job_id)
        await self.tidy()
        feed = self._feeds.get(job.id)
        if feed is None:
            if len(self._feeds) >= MAX_FEEDS:
                raise ThalwegError("LOCAL", {"problem": f"the page shows {MAX_FEEDS} jobs at most at a time; try again later"})
            feed = self._feeds[job.id] = Feed(self._gateway, job)
        return feed

    async def tidy(self) -> None:
        """Ends the feeds at which nobody has looked for a while."""
        now = time.monotonic()
        for job_id, feed in list(self._feeds.items()):
            if not feed.viewers and now - feed.left > LINGER_SECONDS:
                del self._feeds[job_id]
                await feed.close()

    async def close(self) -> None:
        """Ends all feeds."""
        feeds, self._feeds = list(self._feeds.values()), {}
        for feed in feeds:
            await feed.close()
