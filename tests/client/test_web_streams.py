"""What the page is sent: bounded, thinned, and shared, whatever happens on the server. Counted in messages and points."""

import asyncio
import json
import math
import socket
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.client.helpers import NOWHERE, fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, StepsTaken
from thalweg.client.composition import start_page
from thalweg.client.web import directory as directories
from thalweg.client.web import feed as feed_module
from thalweg.client.web import hosting, views
from thalweg.client.web.cluster import Cluster, nodes
from thalweg.client.web.curves import MAX_POINTS, Curve, Seen
from thalweg.client.web.directory import MAX_REFRESHED, PAGE_ROWS, Directories, Directory, Query
from thalweg.client.web.entrance import Entrance
from thalweg.client.web.feed import MAX_LOG, Feeds
from thalweg.client.web.gateway import Credential, Gateway
from thalweg.client.web.sessions import Sessions
from thalweg.client.web.streams import Streams
from thalweg.contract.endpoint import Address, Endpoint, parse_address
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import cluster_service_pb2 as clusters
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

ALICE, BOB = Credential("alice's"), Credential("bob's")
RUNNING, SUCCEEDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED


class FakeServer(Gateway):
    """Jobs and events in memory. Counts calls, and the watches that are open at once."""

    def __init__(self, jobs: list[job_pb2.Job], events: list[pb.Event]) -> None:
        super().__init__(Endpoint(parse_address(NOWHERE)))
        self.kept = {job.id: job for job in jobs}
        self.events = events
        self.calls: Counter[str] = Counter()
        self.watching = 0
        self.most_watching = 0
        self.recorded = asyncio.Event()
        # Those who may see jobs; None for everyone.
        self.admitted: set[Credential] | None = None

    def _admit(self, call: str, credential: Credential) -> None:
        self.calls[call] += 1
        if self.admitted is not None and credential not in self.admitted:
            raise ThalwegError("UNAUTHENTICATED")

    async def job(self, credential: Credential, job_id: str) -> job_pb2.Job:
        self._admit("job", credential)
        if job_id not in self.kept:
            raise ThalwegError("JOB_NOT_FOUND", {"job": job_id})
        return self.kept[job_id]

    async def workers(self, credential: Credential, job_id: str) -> pb.ListWorkersResponse | None:
        self._admit("workers", credential)
        return None

    async def jobs(self, credential: Credential, page_size: int, page_token: str = "") -> pb.ListJobsResponse:
        self._admit("jobs", credential)
        start = int(page_token or 0)
        newest = [self.kept[name] for name in sorted(self.kept, reverse=True)]
        page, rest = newest[start : start + page_size], newest[start + page_size :]
        return pb.ListJobsResponse(jobs=page, next_page_token=str(start + page_size) if rest else "")

    async def watch(self, credential: Credential, job_id: str, after: int, until_now: bool = False) -> AsyncIterator[pb.Event]:
        self._admit("watch", credential)
        self.watching += 1
        self.most_watching = max(self.most_watching, self.watching)
        try:
            while True:
                for event in self.events[after:]:
                    after = event.sequence
                    yield event
                if until_now or self.kept[job_id].state == SUCCEEDED:
                    return
                self.recorded.clear()
                await self.recorded.wait()
        finally:
            self.watching -= 1

    def record(self, event: pb.Event) -> None:
        event.sequence = len(self.events) + 1
        self.events.append(event)
        self.recorded.set()


def a_job(name: str, state: job_pb2.JobState.ValueType = RUNNING, steps: int = 0) -> job_pb2.Job:
    job = job_pb2.Job(id=name, state=state)
    job.progress.step, job.progress.total_steps, job.progress.workers = steps, 10**7, 1
    return job


def steps_taken(first: int, count: int) -> pb.Event:
    """The event of some steps whose losses are their numbers."""
    taken = pb.StepsTaken(first_step=first, losses=range(first + 1, first + count + 1), steps=count)
    taken.progress.CopyFrom(a_job("", steps=first + count).progress)
    taken.progress.learning_rate, taken.progress.samples_per_second = 0.1, 1e6
    return pb.Event(steps_taken=taken)


class Beat:
    """A pace that a test sets: each viewer sends once per beat."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    async def __call__(self) -> None:
        await self._next.wait()

    async def pass_by(self) -> None:
        self._next.set()
        self._next = asyncio.Event()
        for _ in range(20):
            await asyncio.sleep(0)


def streams_of(server: FakeServer, beat: Beat) -> tuple[Streams, Sessions, Feeds]:
    sessions, feeds = Sessions(), Feeds(server)
    entrance = Entrance(server, sessions, None, secure=False, port=1)
    return Streams(server, entrance, feeds, Directories(server), beat), sessions, feeds


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_ten_thousand_steps_a_second_cost_as_many_messages_as_ten() -> None:
    async def test() -> None:
        server = FakeServer([a_job("fast")], [])
        beat = Beat()
        streams, sessions, feeds = streams_of(server, beat)
        received: list[list[dict[str, Any]]] = []

        async def look(credential: Credential) -> None:
            messages: list[dict[str, Any]] = []
            received.append(messages)
            session = sessions.open(credential, "", "viewer")
            async with aclosing(streams.job_news(session, await feeds.of(credential, "fast"))) as news:
                async for changes in news:
                    # Each is kept as it comes: the viewer is cancelled in the end.
                    messages += [json.loads(json.dumps(changes, allow_nan=False))]

        viewers = [asyncio.create_task(look(ALICE if index % 2 else BOB)) for index in range(10)]
        await beat.pass_by()
        beats = 5
        for number in range(beats):
            # A second of a fast job: the server tells of its steps five times.
            for part in range(5):
                server.record(steps_taken(number * 10_000 + part * 2000, 2000))
            for _ in range(200):
                await asyncio.sleep(0)
            await beat.pass_by()
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)
        assert len(feeds) == 1
        # One watch for all of them.
        assert server.most_watching == 1
        assert server.calls["watch"] == 2, "what is on record, then what follows"
        for messages in received:
            assert 2 <= len(messages) <= beats + 2
            for message in messages:
                for curve in message.get("curves", {}).values():
                    assert len(curve["steps"]) <= MAX_POINTS
            assert taken(messages)["loss"] == taken(received[0])["loss"]
        steps, values = taken(received[0])["loss"]
        assert steps[-1] == beats * 10_000
        assert MAX_POINTS / 2 <= len(steps) <= MAX_POINTS
        # The loss of a step is its number, so the mean over the steps of a point lies between them.
        assert all(value and before < value <= step for before, step, value in zip([0, *steps], steps, values, strict=False))
        await feeds.close()
        assert server.watching == 0

    run(test())


def taken(messages: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float | None]]]:
    """The curves that a browser has after some messages."""
    curves: dict[str, tuple[list[int], list[float | None]]] = {}
    for message in messages:
        for name, change in message.get("curves", {}).items():
            steps, values = curves.setdefault(name, ([], []))
            steps[change["from"] :] = change["steps"]
            values[change["from"] :] = change["values"]
    return curves


def test_what_a_viewer_may_not_see_is_not_shared_with_it() -> None:
    async def test() -> None:
        server = FakeServer([a_job("secret")], [])
        server.admitted = {ALICE}
        _, _, feeds = streams_of(server, Beat())
        feed = await feeds.of(ALICE, "secret")
        view = feed.enter(ALICE)
        with pytest.raises(ThalwegError) as error:
            await feeds.of(BOB, "secret")
        assert error.value.reason == "UNAUTHENTICATED"
        # The watch goes on for those who may see it when the one who began it no longer may.
        other = feed.enter(BOB)
        server.admitted = {BOB}
        feed.leave(view)
        server.record(steps_taken(0, 5))
        await until(lambda: feed.curves.get("loss") is not None)
        assert not feed.problem
        feed.leave(other)
        await feeds.close()

    run(test())


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_stream_ends_with_its_session() -> None:
    async def test() -> None:
        beat = Beat()
        streams, sessions, feeds = streams_of(FakeServer([a_job("a")], []), beat)
        session = sessions.open(ALICE, "", "viewer")
        lines: list[str] = []

        async def look() -> None:
            async for line in streams._sent(session, streams.job_news(session, await feeds.of(ALICE, "a"))):
                lines[:] = [line]

        looking = asyncio.create_task(look())
        await until(lambda: lines)
        assert (streams.open, session.streams) == (1, 1)
        sessions.close(session)
        while not looking.done():
            await beat.pass_by()
            await asyncio.sleep(0.01)
        assert (streams.open, session.streams) == (0, 0)
        await feeds.close()

    run(test())


def test_the_log_of_a_job_has_a_bound() -> None:
    async def test() -> None:
        events = [pb.Event(notice=pb.Notice(text=f"notice {number}"), sequence=number) for number in range(1, 1001)]
        server = FakeServer([a_job("wordy", SUCCEEDED)], events)
        _, _, feeds = streams_of(server, Beat())
        feed = await feeds.of(ALICE, "wordy")
        view = feed.enter(ALICE)
        await until(lambda: feed.whole)
        news = feed.news(view)
        assert [entry["text"] for entry in news["log"]] == [f"notice {number}" for number in range(1001 - MAX_LOG, 1001)]
        assert feed.news(view) == {}
        await feeds.close()

    run(test())


def test_a_thousand_jobs_cost_a_few_calls_however_many_look() -> None:
    async def test() -> None:
        jobs = [a_job(f"job-{number:04}", RUNNING if number % 2 else SUCCEEDED) for number in range(1000)]
        server = FakeServer(jobs, [])
        directory = Directory(server, ALICE)
        await fill(directory)
        assert server.calls["jobs"] <= 1000 / directories.WALK_PAGE * 2
        rows, total = directory.find(Query())
        assert (len(rows), total) == (PAGE_ROWS, 1000)
        assert [row["id"] for row in rows] == [f"job-{number:04}" for number in range(999, 999 - PAGE_ROWS, -1)]
        assert directory.counts() | {"RUNNING": 500, "SUCCEEDED": 500} == directory.counts()
        # Thirty viewers look at thirty pages.
        for viewer in range(30):
            found, _ = directory.find(Query(page=viewer))
            directory.shown[viewer] = [row["id"] for row in found]
        server.calls.clear()
        await tick(directory)
        assert server.calls["jobs"] == 2
        assert 0 < server.calls["job"] <= MAX_REFRESHED

    run(test())


async def tick(directory: Directory) -> None:
    await directory._tick()


async def fill(directory: Directory) -> None:
    while not directory.whole:
        await tick(directory)


def test_the_list_follows_jobs_that_come_change_and_go() -> None:
    async def test() -> None:
        server = FakeServer([a_job(f"job-{number:04}") for number in range(600)], [])
        directory = Directory(server, ALICE)
        await fill(directory)
        server.kept["job-0600"] = a_job("job-0600")
        del server.kept["job-0100"]
        server.kept["job-0000"].progress.step = 77
        directory.shown["viewer"] = ["job-0000"]
        await tick(directory)
        assert directory.find(Query())[0][0]["id"] == "job-0600"
        assert directory.find(Query("job-0000"))[0][0]["step"] == 77
        # The walk through all jobs ends, and another one.
        for _ in range(8):
            await tick(directory)
        assert directory.find(Query("job-0100")) == ([], 0)
        oldest, total = directory.find(Query(page=23))
        assert (oldest[-1]["id"], total) == ("job-0000", 600)

    run(test())


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (Query("digits"), ["digits-2", "digits-1"]),
        (Query("DIGITS 1"), ["digits-1"]),
        (Query(state="SUCCEEDED"), ["xor-1"]),
        (Query("waiting"), ["digits-2"]),
        (Query("xor", "RUNNING"), []),
    ],
)
def test_search(query: Query, found: list[str]) -> None:
    async def test() -> None:
        jobs = [a_job("digits-1"), a_job("digits-2"), a_job("xor-1", SUCCEEDED)]
        jobs[1].status = "waiting for workers"
        directory = Directory(FakeServer(jobs, []), ALICE)
        await fill(directory)
        assert sorted((row["id"] for row in directory.find(query)[0]), reverse=True) == sorted(found, reverse=True)

    run(test())


def test_a_list_sends_the_rows_that_have_changed() -> None:
    async def test() -> None:
        server, beat = FakeServer([a_job(f"job-{number}") for number in range(5)], []), Beat()
        streams, sessions, _ = streams_of(server, beat)
        news = streams.list_news(sessions.open(ALICE, "", "viewer"), Query())
        directory = streams._directories.of(ALICE)
        seen: dict[str, Any] = {}

        async def read() -> dict[str, Any]:
            asked = asyncio.ensure_future(anext(news))
            while not asked.done():
                await beat.pass_by()
                await asyncio.sleep(0.005)
            return await asked

        while len(seen) < 5:
            seen |= {row["id"]: row for row in (await read()).get("rows", [])}
        server.kept["job-3"].progress.step = 9
        while "rows" not in (changes := await read()):
            assert "ids" not in changes
        assert [(row["id"], row["step"]) for row in changes["rows"]] == [("job-3", 9)]
        await news.aclose()
        assert directory.viewers == 0

    run(test())


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-1e6, 1e6), st.booleans()), max_size=300), st.integers(2, 20))
def test_a_viewer_that_takes_all_news_has_the_curve(additions: list[tuple[int, float, bool]], limit: int) -> None:
    curve, seen = Curve(limit), Seen()
    messages, step, total = [], 0, 0.0
    for gap, value, looks in additions:
        step += gap
        total += value * gap
        curve.add(step, value, gap)
        if looks and (news := curve.news(seen)):
            messages.append({"curves": {"a": news}})
    if news := curve.news(seen):
        messages.append({"curves": {"a": news}})
    assert curve.news(seen) is None
    assert len(curve.points) <= limit
    if additions:
        steps, values = taken(messages)["a"]
        assert steps == [point.step for point in curve.points]
        assert values == pytest.approx([point.mean for point in curve.points], rel=1e-6, abs=1e-6)
        assert sum(point.total for point in curve.points) == pytest.approx(total, rel=1e-9, abs=1e-3)
        assert all(point.low <= point.mean + 1e-6 and point.mean <= point.high + 1e-6 for point in curve.points)


def test_a_curve_of_few_points_is_exact_and_one_that_diverges_says_so() -> None:
    curve = Curve()
    for step in range(1, MAX_POINTS + 1):
        curve.add(step, step / 8)
    news = curve.news(Seen())
    assert news == {"from": 0, "steps": list(range(1, 401)), "values": [step / 8 for step in range(1, 401)]}
    curve.add(401, math.nan)
    curve.add(402, math.inf)
    thinned = curve.news(Seen())
    assert thinned
    assert len(thinned["steps"]) == 202
    assert thinned["values"][-2:] == [None, None]
    assert thinned["high"][-1] is None


def test_steps_that_are_told_twice_count_once() -> None:
    curve = Curve()
    for step in (1, 2, 3, 2, 3, 4):
        curve.add(step, step)
    assert [point.step for point in curve.points] == [1, 2, 3, 4]


def test_the_time_left_follows_from_the_pace() -> None:
    job = a_job("a", steps=100)
    job.progress.total_steps, job.progress.samples_per_second = 200, 50
    job.spec.training.batch_size = 10
    assert views.row(job)["seconds_left"] == 20
    job.progress.workers = 0
    assert views.row(job)["seconds_left"] is None


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Client, Address]]:
    """A server with a token, and its page on a port of its own."""
    with running_server(tmp_path, token="secret") as server, Client(server.address, "secret") as client:
        page = start_page(Endpoint(server.address), Address("127.0.0.1", 0))
        try:
            with fleet_of_threads(server, "secret"):
                yield client, page.address
        finally:
            page.stop()


def opened(address: Address, path: str, cookie: str) -> HTTPResponse:
    connection = HTTPConnection(address.host, address.port, timeout=60)
    connection.request("GET", path, headers={"Cookie": cookie})
    return connection.getresponse()


def events(stream: HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := stream.readline():
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def test_a_job_is_followed_to_its_end_over_http(served: tuple[Client, Address]) -> None:
    client, address = served
    job = client.submit("xor", {"training.epochs": 50}, id="watched")
    login = HTTPConnection(address.host, address.port, timeout=60)
    login.request("POST", "/api/login", json.dumps({"token": "secret"}), {"Content-Type": "application/json"})
    answer = login.getresponse()
    cookie, csrf = (answer.headers["set-cookie"] or "").split(";")[0], json.loads(answer.read())["session"]["csrf"]
    stream = opened(address, "/streams/jobs/watched", cookie)
    assert stream.headers["content-type"].startswith("text/event-stream")
    messages: list[dict[str, Any]] = []
    for message in events(stream):
        messages.append(message)
        if message.get("job", {}).get("state") == "SUCCEEDED" and len(taken(messages).get("loss", ([], []))[0]) == 50:
            break
    told = [event for event in job.history() if isinstance(event, StepsTaken)]
    losses = [loss for event in told for loss in event.losses]
    steps, values = taken(messages)["loss"]
    assert steps == list(range(1, 51))
    assert values == pytest.approx(losses, rel=1e-6)
    assert any(entry["text"].startswith("succeeded") for message in messages for entry in message.get("log", []))
    headers = {"Content-Type": "application/json", "Cookie": cookie, "X-CSRF-Token": csrf}
    login.request("POST", "/api/logout", "{}", headers)
    assert login.getresponse().read() == b"{}"
    assert opened(address, "/streams/jobs/watched", cookie).status == 401


def test_a_connection_without_a_request_ends(served: tuple[Client, Address], monkeypatch: pytest.MonkeyPatch) -> None:
    _, address = served
    monkeypatch.setattr(hosting, "IDLE_SECONDS", 0.05)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /"):
        with socket.create_connection(address, timeout=60) as silent:
            silent.sendall(sent)
            while silent.recv(1 << 16):
                pass


def test_nobody_who_looks_means_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "LINGER_SECONDS", 0.01)

    async def test() -> None:
        server = FakeServer([a_job("a")], [steps_taken(0, 5)])
        server.events[0].sequence = 1
        _, _, feeds = streams_of(server, Beat())
        feed = await feeds.of(ALICE, "a")
        view = feed.enter(ALICE)
        await until(lambda: feed.whole and server.watching == 1)
        feed.leave(view)
        await until(lambda: server.watching == 0)
        # The next one gets what is known, and what is new.
        server.record(steps_taken(5, 5))
        again = feed.enter(BOB)
        await until(lambda: feed.curves["loss"].last_step == 10)
        assert len(feed.news(again)["curves"]["loss"]["steps"]) == 10
        await feeds.close()

    run(test())


def test_the_cluster_is_told_to_those_who_may_know_it(served: tuple[Client, Address]) -> None:
    client, _ = served

    async def told(token: str) -> dict[str, Any]:
        gateway = Gateway(Endpoint(client.address))
        gateway.open()
        try:
            return await Cluster(gateway).now(Credential(token))
        finally:
            await gateway.close()

    admin = asyncio.run(told("secret"))
    assert admin["fleets"] == [{"name": "threads", "slots": 2, "allotted": 0}]
    assert (admin["nodes"], admin["closed"], admin["draining"]) == ([], {}, False)
    client.cluster.cordon("threads")
    assert asyncio.run(told("secret"))["closed"] == {"threads": "cordoned"}
    submitter = asyncio.run(told(client.access.create("submits", "submitter").secret))
    # Nodes name the jobs of others.
    assert submitter["nodes"] is None
    assert submitter["fleets"] == admin["fleets"]


def test_nodes_have_the_jobs_that_work_there() -> None:
    workers = [clusters.NodeWorker(name=name, job_id=job, slots=2) for name, job in (("a", "x"), ("b", "x"), ("c", "y"))]
    node = clusters.FleetNode(name="n-1", slots=8, gpus=1, workers=workers)
    fleet = clusters.Fleet(name="rack", nodes=[node, clusters.FleetNode(name="n-0")], closure=clusters.CLOSURE_CORDONED)
    told = nodes(clusters.ListFleetsResponse(fleets=[fleet]))
    assert [each["name"] for each in told["nodes"]] == ["n-0", "n-1"]
    jobs = [{"id": "x", "workers": 2}, {"id": "y", "workers": 1}]
    expected = {"fleet": "rack", "name": "n-1", "slots": 8, "used": 6, "gpus": 1, "closed": "cordoned", "jobs": jobs}
    assert told["nodes"][1] == expected
