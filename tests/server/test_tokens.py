"""Tokens with names: made once, kept hashed, expired, revoked, and what survives a restart."""

import asyncio
import queue
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.end_to_end.cluster import running_server
from tests.end_to_end.command import wait_for
from tests.end_to_end.refusals import refusal as refused_with
from tests.server.specs import make_spec
from tests.server.tokens import town
from thalweg.client import Client
from thalweg.contract.endpoint import authorization
from thalweg.contract.errors import ThalwegError
from thalweg.contract.release import capacity
from thalweg.server.access.principal import Principal, Role
from thalweg.server.process import Server
from thalweg.server.services.guarding.open_calls import OpenCalls
from thalweg.v1 import access_service_pb2 as pb
from thalweg.v1 import fleet_service_pb2, fleet_service_pb2_grpc
from thalweg.v1.training_service_pb2 import WatchJobRequest

OWN = "the operator's"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("data"), token=OWN) as server:
        yield server


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Client]:
    with Client(server.address, OWN) as client:
        yield client


def caller(server: Server, token: str | None) -> tuple[str, str]:
    with Client(server.address, token) as client:
        found = client.access.caller()
    return found.name, found.role


def refusal(server: Server, token: str) -> ThalwegError:
    with pytest.raises(ThalwegError) as refused:
        caller(server, token)
    return refused.value


def test_a_token_has_its_name_and_role_until_it_is_revoked(server: Server, admin: Client) -> None:
    assert caller(server, OWN) == ("admin", "admin")
    made = admin.access.create("ann", "submitter")
    assert (made.token.name, made.token.role, made.token.valid) == ("ann", "submitter", True)
    assert caller(server, made.secret) == ("ann", "submitter")
    assert refusal(server, made.secret + "x").reason == "UNAUTHENTICATED"
    assert refusal(server, made.secret[:-1]).reason == "UNAUTHENTICATED"
    revoked = admin.access.revoke("ann")
    assert revoked.HasField("revoke_time")
    assert not revoked.valid
    refused = refusal(server, made.secret)
    assert refused.reason == "TOKEN_ENDED"
    assert "the token of ann was revoked" in str(refused)
    with pytest.raises(ThalwegError, match="no valid token of ann"):
        admin.access.revoke("ann")
    # The name goes on with another token.
    again = admin.access.create("ann", "viewer")
    assert caller(server, again.secret) == ("ann", "viewer")
    assert refusal(server, made.secret).reason == "TOKEN_ENDED"
    assert [token.valid for token in admin.access.tokens() if token.name == "ann"] == [False, True]


def test_a_token_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(tmp_path, token=OWN) as server, Client(server.address, OWN) as admin:
        lasting, short = admin.access.create("long", "viewer"), admin.access.create("short", "viewer", 3600)
        assert caller(server, short.secret) == ("short", "viewer")
        later = short.token.expire_time.ToMicroseconds() / 1e6 + 1e-3
        monkeypatch.setattr(server.credentials, "_clock", lambda: later)
        refused = refusal(server, short.secret)
        assert refused.reason == "TOKEN_ENDED"
        assert "the token of short has expired" in str(refused)
        assert caller(server, lasting.secret) == ("long", "viewer")
        # Its name is free again.
        assert caller(server, admin.access.create("short", "fleet").secret) == ("short", "fleet")


def test_tokens_survive_a_restart_and_are_not_in_the_folder(tmp_path: Path) -> None:
    with running_server(tmp_path, token=OWN) as server, Client(server.address, OWN) as admin:
        kept, ended = admin.access.create("kept", "viewer").secret, admin.access.create("ended", "viewer").secret
        admin.access.revoke("ended")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert kept.encode() not in path.read_bytes(), path
    with running_server(tmp_path, token="another") as server:
        assert caller(server, kept) == ("kept", "viewer")
        assert refusal(server, ended).reason == "TOKEN_ENDED"
        assert refusal(server, OWN).reason == "UNAUTHENTICATED"


def test_calls_end_when_their_token_is_revoked(tmp_path: Path) -> None:
    with town(tmp_path, audit=True) as place:
        vic, rack = place.make("vic", "viewer"), place.make("rack", "fleet")
        place.admin.create(make_spec(epochs=1), "a")
        watch = vic.WatchJob(WatchJobRequest(job_id="a"))
        outbox: queue.SimpleQueue[fleet_service_pb2.AttendRequest | None] = queue.SimpleQueue()
        outbox.put(fleet_service_pb2.AttendRequest(capacity=capacity("rack", 2)))
        with grpc.insecure_channel(str(place.server.address)) as channel:
            stub: Any = fleet_service_pb2_grpc.FleetServiceStub(channel)
            attending = stub.Attend(iter(outbox.get, None), metadata=authorization(rack.token))
            assert next(watch)
            assert next(attending)
            for name in ("vic", "rack"):
                place.revoke(name)
            for stream in (watch, attending):
                ended = refused_with(lambda stream=stream: stream)  # type: ignore[misc]
                assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_ENDED")
                assert ended.metadata["problem"] == "was revoked"
            outbox.put(None)
        wait_for(lambda: not place.server.jobs.places.fleets.attending)
        # Others go on, and one may revoke one's own token.
        boss = place.make("boss", "admin")
        with Client(place.server.address, boss.token) as client:
            assert not client.access.revoke("boss").valid


def test_calls_end_when_their_token_expires() -> None:
    async def wait(calls: OpenCalls, principal: Principal) -> None:
        with calls.one_more(principal):
            await asyncio.Event().wait()

    async def wait_for_both() -> list[object]:
        calls = OpenCalls()
        soon = time.time() + 0.01
        short = asyncio.create_task(wait(calls, Principal("short", Role.VIEWER, expires=soon)))
        cancelled = asyncio.create_task(wait(calls, Principal("long", Role.VIEWER, expires=soon + 3600)))
        await asyncio.wait([short])
        cancelled.cancel()
        return list(await asyncio.gather(short, cancelled, return_exceptions=True))

    ended, cancelled = asyncio.run(wait_for_both())
    assert isinstance(ended, ThalwegError)
    assert (ended.reason, ended.metadata["problem"]) == ("TOKEN_ENDED", "has expired")
    assert isinstance(cancelled, asyncio.CancelledError)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateTokenRequest(role="viewer"), "name"),
        (pb.CreateTokenRequest(name="Ann", role="viewer"), "name"),
        (pb.CreateTokenRequest(name="a" * 64, role="viewer"), "name"),
        (pb.CreateTokenRequest(name="-a", role="viewer"), "name"),
        (pb.CreateTokenRequest(name="admin", role="viewer"), "name"),
        (pb.CreateTokenRequest(name="bob"), "role"),
        (pb.CreateTokenRequest(name="bob", role="worker"), "role"),
        (pb.CreateTokenRequest(name="bob", role="viewer", valid_seconds=-1), "valid_seconds"),
        (pb.CreateTokenRequest(name="bob", role="viewer", valid_seconds=float("nan")), "valid_seconds"),
    ],
)
def test_what_makes_no_sense_is_refused(admin: Client, request_: pb.CreateTokenRequest, field: str) -> None:
    with pytest.raises(ThalwegError) as refused:
        admin.access.create(request_.name, request_.role, request_.valid_seconds)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_a_valid_name_is_not_given_twice(admin: Client) -> None:
    admin.access.create("twice", "viewer")
    with pytest.raises(ThalwegError, match="revoke it first"):
        admin.access.create("twice", "admin")


def test_where_no_token_is_required_issued_ones_count(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, Client(server.address) as admin:
        assert caller(server, None) == caller(server, "of another server") == ("admin", "admin")
        made = admin.access.create("eve", "viewer")
        assert caller(server, made.secret) == ("eve", "viewer")
        admin.access.revoke("eve")
        assert refusal(server, made.secret).reason == "TOKEN_ENDED"
        assert refusal(server, "thalweg-forged").reason == "UNAUTHENTICATED"


def test_a_folder_keeps_the_sha256_alone(tmp_path: Path) -> None:
    with running_server(tmp_path, token=OWN) as server, Client(server.address, OWN) as admin:
        admin.access.create("ann", "submitter", 60)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database:
        ((digest, name, role, created, expires, revoked),) = database.execute(
            "SELECT digest, name, role, created, expires, revoked FROM tokens"
        ).fetchall()
    assert (len(digest), name, role, expires - created, revoked) == (32, "ann", "submitter", 60, None)
