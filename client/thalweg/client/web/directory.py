"""The list of jobs as one user sees it: read from the server by pages, shared by all tabs of the user, searched here."""

import asyncio
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from thalweg.client.records import ENDED
from thalweg.client.web import views
from thalweg.client.web.changing import Changing
from thalweg.client.web.gateway import Credential, Gateway
from thalweg.contract.errors import ThalwegError

TICK_SECONDS = 1.0
# In each tick, the newest jobs are read, the next page of a walk through all of them, and the shown ones that have not ended.
NEWEST = 50
WALK_PAGE = 200
MAX_REFRESHED = 50
# Older jobs are not listed.
MAX_JOBS = 50_000
PAGE_ROWS = 25
# What a person who looks at jobs wants to tell apart.
STATES = ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED")


class Query(NamedTuple):
    """What one viewer wants to see: a text in the id, name, owner or status, a state, and the number of a page from 0 on."""

    text: str = ""
    state: str = ""
    page: int = 0


class Directory(Changing):
    """The jobs that one credential may see. `shown` are the ids that each viewer's page shows."""

    def __init__(self, gateway: Gateway, credential: Credential) -> None:
        super().__init__()
        self.viewers = 0
        self.whole = False
        self.problem: ThalwegError | None = None
        self.shown: dict[object, Collection[str]] = {}
        self._gateway = gateway
        self._credential = credential
        self._rows: dict[str, dict[str, Any]] = {}
        self._order: list[str] = []
        self._walked: list[str] = []
        self._token = ""
        self._task: asyncio.Task[None] | None = None

    def enter(self) -> None:
        """Someone looks from now on."""
        self.viewers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def leave(self, viewer: object) -> None:
        """Someone looks no more."""
        self.shown.pop(viewer, None)
        self.viewers -= 1
        if not self.viewers:
            await self.close()

    async def close(self) -> None:
        """Reads no more."""
        if self._task:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def find(self, query: Query) -> tuple[list[dict[str, Any]], int]:
        """The jobs on a page of those that a query means, and how many these are."""
        words = query.text.casefold().split()
        if not words and not query.state:
            found = self._order
        else:
            found = [job_id for job_id in self._order if _matches(self._rows[job_id], words, query.state)]
        start = query.page * PAGE_ROWS
        return [self._rows[job_id] for job_id in found[start : start + PAGE_ROWS]], len(found)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        counts = dict.fromkeys(STATES, 0)
        for row in self._rows.values():
            counts[row["state"]] = counts.get(row["state"], 0) + 1
        return counts

    def waiting(self, limit: int) -> list[dict[str, Any]]:
        """The jobs that have not ended and make no progress, the newest first."""
        rows = (self._rows[job_id] for job_id in self._order)
        return [row for row in rows if row["state"] not in ENDED and (row["waiting_for"] or not row["workers"])][:limit]

    async def _keep(self) -> None:
        while True:
            try:
                await self._tick()
                self.problem = None
            except ThalwegError as error:
                self.problem = error
            self._say()
            if self.whole or self.problem:
                await asyncio.sleep(TICK_SECONDS)

    async def _tick(self) -> None:
        newest = await self._gateway.jobs(self._credential, NEWEST)
        first = self._put(views.row(job) for job in newest.jobs)
        known = set(first)
        self._order = first + [job_id for job_id in self._order if job_id not in known]
        await self._walk()
        await self._refresh({*known, *self._walked[-WALK_PAGE:]})

    async def _walk(self) -> None:
        """Reads the next page of all jobs. At the end of the list, those that were not found are gone."""
        page = await self._gateway.jobs(self._credential, WALK_PAGE, self._token)
        self._walked += self._put(views.row(job) for job in page.jobs)
        self._token = page.next_page_token if len(self._walked) < MAX_JOBS else ""
        if not self.whole:
            # As long as the first walk lasts, what it has found is the list.
            self._order = list(dict.fromkeys(self._order + self._walked))
        if self._token:
            return
        found = set(self._walked)
        # New ones may have come since the walk began.
        oldest = self._order.index(self._walked[0]) if self._walked and self._walked[0] in self._rows else len(self._order)
        newer = [job_id for job_id in self._order[:oldest] if job_id not in found]
        self._order = newer + self._walked
        kept = set(self._order)
        self._rows = {job_id: row for job_id, row in self._rows.items() if job_id in kept}
        self._walked, self.whole = [], True

    async def _refresh(self, fresh: Collection[str]) -> None:
        """Asks for the shown jobs that have not ended and were not among those just read."""
        shown = dict.fromkeys(job_id for ids in self.shown.values() for job_id in ids)
        stale = [
            job_id
            for job_id in shown
            if job_id not in fresh and job_id in self._rows and self._rows[job_id]["state"] not in ENDED
        ]
        for job_id in stale[:MAX_REFRESHED]:
            try:
                job = await self._gateway.job(self._credential, job_id)
            except ThalwegError as error:
                if error.reason != "JOB_NOT_FOUND":
                    raise
                # The walk will find that it is gone.
                continue
            self._put([views.row(job)])

    def _put(self, rows: Iterable[dict[str, Any]]) -> list[str]:
        ids = []
        for row in rows:
            self._rows[row["id"]] = row
            ids.append(row["id"])
        return ids


class Directories:
    """The lists of all users who look at one."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._directories: dict[Credential, Directory] = {}

    def of(self, credential: Credential) -> Directory:
        """The list of one user."""
        idle = [key for key, directory in self._directories.items() if not directory.viewers and key != credential]
        for key in idle:
            del self._directories[key]
        return self._directories.setdefault(credential, Directory(self._gateway, credential))

    async def close(self) -> None:
        """Ends all of them."""
        for directory in self._directories.values():
            await directory.close()
        self._directories.clear()


def _matches(row: dict[str, Any], words: list[str], state: str) -> bool:
    if state and row["state"] != state:
        return False
    if not words:
        return True
    text = " ".join(str(row.get(name, "")) for name in ("id", "name", "owner", "status", "error")).casefold()
    return all(word in text for word in words)
