"""What the page is sent while it is open: server-sent events, a few a second at most, each with what has changed."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from thalweg.client.web.cluster import Cluster
from thalweg.client.web.directory import STATES, Directories, Query
from thalweg.client.web.entrance import Entrance, Refusal
from thalweg.client.web.feed import Feed, Feeds
from thalweg.client.web.gateway import Gateway
from thalweg.client.web.sessions import Session
from thalweg.client.web.sparklines import Sparklines
from thalweg.contract.errors import ThalwegError

# The time between two events of a stream.
PACE_SECONDS = 0.3
# Without news, the browser is sent an empty line, so that both ends notice when the other is gone.
_BEAT_SECONDS = 10.0
# How often it is checked whether a viewer may still see a job.
_CHECK_SECONDS = 30.0
MAX_STREAMS = 400
MAX_STREAMS_OF_SESSION = 12
_MAX_TEXT = 200
_MAX_WAITING = 100

# Waits until the next event may be sent.
Pace: TypeAlias = Callable[[], Awaitable[object]]
# Changes; an empty one is not sent.
News: TypeAlias = AsyncGenerator[dict[str, Any]]


async def _pace() -> None:
    await asyncio.sleep(PACE_SECONDS)


class Streams:
    """The streams of all pages that are open."""

    def __init__(self, gateway: Gateway, entrance: Entrance, feeds: Feeds, directories: Directories, pace: Pace = _pace) -> None:
        self.open = 0
        self._gateway = gateway
        self._entrance = entrance
        self._feeds = feeds
        self._directories = directories
        self._sparklines = Sparklines(gateway)
        self._cluster = Cluster(gateway)
        self._pace = pace

    async def jobs(self, request: Request) -> Response:
        """The list of jobs."""
        session, asked = self._entrance.session(request), request.query_params
        page, state = asked.get("page", "0"), asked.get("state", "")
        if not (page.isascii() and page.isdigit() and len(page) < 7) or (state and state not in STATES):
            raise Refusal(400, "There is no such list.")
        query = Query(asked.get("text", "")[:_MAX_TEXT], state, int(page))
        return self._respond(session, self.list_news(session, query))

    async def job(self, request: Request) -> Response:
        """One job."""
        session = self._entrance.session(request)
        feed = await self._feeds.of(session.credential, request.path_params["job"])
        return self._respond(session, self.job_news(session, feed))

    async def cluster(self, request: Request) -> Response:
        """The cluster."""
        session = self._entrance.session(request)
        return self._respond(session, self.cluster_news(session))

    def _respond(self, session: Session, news: News) -> Response:
        if self.open >= MAX_STREAMS or session.streams >= MAX_STREAMS_OF_SESSION:
            raise Refusal(429, "Too many pages are open. Close some of them.")
        # A proxy must not collect what is sent.
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(self._sent(session, news), media_type="text/event-stream", headers=headers)

    async def _sent(self, session: Session, news: News) -> AsyncIterator[str]:
        """The events of a stream, as they are sent. It ends with its session."""
        self.open += 1
        session.streams += 1
        try:
            async with aclosing(news):
                async for changes in news:
                    yield f"data: {json.dumps(changes, allow_nan=False)}\n\n" if changes else ":\n\n"
                    if not self._entrance.sessions.is_open(session):
                        return
        except ThalwegError as error:
            if error.code is grpc.StatusCode.UNAUTHENTICATED:
                self._entrance.sessions.close(session)
            yield f"data: {json.dumps({'ended': str(error)})}\n\n"
        finally:
            self.open -= 1
            session.streams -= 1

    async def job_news(self, session: Session, feed: Feed) -> News:
        """What changes of a job. Raises ThalwegError if the user may no longer see it."""
        view = feed.enter(session.credential)
        checked = time.monotonic()
        try:
            while True:
                version = feed.version
                yield feed.news(view)
                await self._pace()
                await feed.change(version, _BEAT_SECONDS)
                if time.monotonic() - checked > _CHECK_SECONDS:
                    checked = time.monotonic()
                    await self._check(session, feed)
        finally:
            feed.leave(view)

    async def _check(self, session: Session, feed: Feed) -> None:
        try:
            await self._gateway.job(session.credential, feed.job.id)
        except ThalwegError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise

    async def list_news(self, session: Session, query: Query) -> News:
        """What changes of a page of the list of jobs. Raises ThalwegError if the user may no longer see it."""
        directory, viewer = self._directories.of(session.credential), object()
        rows: dict[str, dict[str, Any]] = {}
        said: dict[str, Any] = {}
        reading: asyncio.Task[None] | None = None
        directory.enter()
        try:
            while True:
                version = directory.version
                found, total = directory.find(query)
                directory.shown[viewer] = [row["id"] for row in found]
                shown = [row | {"sparkline": self._sparklines.of(row["id"])} for row in found]
                facts = {
                    "ids": [row["id"] for row in shown],
                    "total": total,
                    "counts": directory.counts(),
                    "whole": directory.whole,
                    "problem": str(directory.problem or ""),
                }
                news = {name: value for name, value in facts.items() if said.get(name) != value}
                if changed := [row for row in shown if rows.get(row["id"]) != row]:
                    news["rows"] = changed
                rows, said = {row["id"]: row for row in shown}, facts
                yield news
                if directory.problem and directory.problem.code is grpc.StatusCode.UNAUTHENTICATED:
                    raise directory.problem
                if reading is None or reading.done():
                    reading = asyncio.create_task(self._read_sparklines(session, found))
                await self._pace()
                await directory.change(version, _BEAT_SECONDS)
        finally:
            if reading:
                reading.cancel()
            await directory.leave(viewer)

    async def _read_sparklines(self, session: Session, rows: list[dict[str, Any]]) -> None:
        try:
            await self._sparklines.refresh(session.credential, rows)
        except ThalwegError:
            # The list itself says that the server cannot be reached; a job may just have been deleted.
            return

    async def cluster_news(self, session: Session) -> News:
        """What changes in the cluster."""
        directory, viewer = self._directories.of(session.credential), object()
        said: dict[str, Any] = {}
        directory.enter()
        try:
            while True:
                version = directory.version
                facts = {"waiting": directory.waiting(_MAX_WAITING), "counts": directory.counts(), "problem": ""}
                try:
                    facts |= await self._cluster.now(session.credential)
                except ThalwegError as error:
                    if error.code is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    facts["problem"] = str(error)
                yield {name: value for name, value in facts.items() if said.get(name) != value}
                said |= facts
                await self._pace()
                await directory.change(version, _BEAT_SECONDS)
        finally:
            await directory.leave(viewer)
