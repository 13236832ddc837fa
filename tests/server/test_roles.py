"""Every method of every service, with every role: without a token, with a wrong, expired or revoked one, and for others' jobs.

What is expected of each cell follows from the role table alone, as it is written in docs/security.md.
"""

import hashlib
import importlib
import io
import pkgutil
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import thalweg.v1
from tests.end_to_end.refusals import refusal_of
from tests.server.specs import make_spec
from tests.server.tokens import Town, town
from thalweg.contract.endpoint import Address, Endpoint, authorization
from thalweg.contract.release import hello
from thalweg.server.access import table
from thalweg.server.access.principal import NAMED_ROLES, Role, Scope
from thalweg.server.sharding.process import ShardConfig, ShardProcess
from thalweg.v1 import job_pb2, parameter_service_pb2
from thalweg.v1 import training_service_pb2 as pb

# Whose the job or the upload is that a call is about.
TARGETS = ("own", "shared", "other")
SEES = "/thalweg.v1.TrainingService/GetJob"
OF_UPLOADS = {"GetUpload", "UploadData", "DownloadData"}


def services() -> list[ServiceDescriptor]:
    """Every service of the contract, and those of gRPC that servers have besides."""
    names = [module.name for module in pkgutil.iter_modules(thalweg.v1.__path__) if module.name.endswith("_pb2")]
    own = [importlib.import_module(f"thalweg.v1.{name}") for name in names]
    return [service for module in (*own, health_pb2, reflection_pb2) for service in module.DESCRIPTOR.services_by_name.values()]


METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method for service in services() for method in service.methods
}
# What ends the server's work comes last.
IN_ORDER = sorted(METHODS, key=lambda method: (method.endswith("/DrainServer"), method))


class Outcome(NamedTuple):
    """How a call ended. `messages` are the bytes of its answers; `problem` is the reason of an error, by the catalogue."""

    code: grpc.StatusCode
    reason: str
    problem: str
    messages: list[bytes]


class World(NamedTuple):
    """A server with principals of all roles: their tokens, valid and not, by role; and files by whose they are."""

    town: Town
    channel: grpc.Channel
    shard: grpc.Channel
    tokens: dict[Role, str]
    invalid: dict[Role, dict[str, str]]
    files: dict[str, bytes]


def archive(value: float) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.full((4, 2), value, np.float32), y=np.zeros((4, 1), np.float32))
    return file.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def job_of(target: str, method: str) -> str:
    """A job for each method, so that what one does to it does not matter to the others."""
    return f"{target}-{method.rpartition('/')[2].lower()}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with town(tmp_path_factory.mktemp("data")) as place, grpc.insecure_channel(str(place.server.address)) as channel:
        callers = {role: place.make(f"a-{role}", role) for role in NAMED_ROLES}
        ann, bob = callers[Role.SUBMITTER], place.make("bob", "submitter")
        files = {target: archive(value) for value, target in enumerate(TARGETS)}
        for target in TARGETS:
            owner = ann if target == "own" else bob
            spec = make_spec(epochs=1, batch_size=4)
            spec.data.npz, spec.data.sha256 = "data.npz", owner.upload(files[target])
            for method in METHODS:
                owner.create(spec, job_of(target, method), shared=target == "shared")
        own = place.server.credentials.worker_token(job_of("own", "Work"))
        ended = place.server.credentials.worker_token(job_of("own", "Attend"))
        assert own
        assert ended
        ann.CancelJob(pb.CancelJobRequest(job_id=job_of("own", "Attend")))
        tokens = {role: caller.token for role, caller in callers.items()} | {Role.WORKER: own}
        invalid = {role: {"wrong": tokens[role][:-1] + "~"} for role in Role}
        for role in NAMED_ROLES:
            # In the past when it is used.
            invalid[role]["expired"] = place.make(f"late-{role}", role, 1e-9).token
            invalid[role]["revoked"] = place.make(f"gone-{role}", role).token
            place.revoke(f"gone-{role}")
        invalid[Role.WORKER]["of a job that has ended"] = ended
        shard = ShardProcess(ShardConfig(Address("127.0.0.1", 0), Endpoint(place.server.address, place.admin.token)))
        shard.start()
        try:
            with grpc.insecure_channel(str(shard.address)) as to_shard:
                yield World(place, channel, to_shard, tokens, invalid, files)
        finally:
            shard.stop()


def request(world: World, method: str, target: str) -> list[Message]:
    """What a method is called with, about a job or an upload."""
    descriptor = METHODS[method]
    kind: Any = GetMessageClass(descriptor.input_type)
    match descriptor.name:
        case "Work":
            return [parameter_service_pb2.WorkRequest(hello=hello(job_id=job_of(target, method)))]
        case "UploadData":
            content = world.files[target]
            return [kind(header=pb.UploadHeader(sha256=digest(content), size=len(content)))]
        case "GetUpload" | "DownloadData":
            return [kind(sha256=digest(world.files[target]))]
        case "CreateJob":
            return [kind(spec=job_pb2.JobSpec())]
        case "Check" | "Watch":
            return [kind()]
    if "job_id" in descriptor.input_type.fields_by_name:
        return [kind(job_id=job_of(target, method))]
    return [] if descriptor.name in ("Attend", "Hold", "ServerReflectionInfo") else [kind()]


def call(world: World, method: str, token: str | None, target: str = "own") -> Outcome:
    """Calls a method as somebody, and waits for the end, or for the first answer of a call that has no end."""
    channel = world.shard if "ShardConfirmation" in method else world.channel
    made: Any = channel.stream_stream(method, lambda message: message.SerializeToString(), lambda message: message)
    stream = made(iter(request(world, method, target)), metadata=authorization(token), timeout=60)
    messages: list[bytes] = []
    try:
        for message in stream:
            messages.append(message)
            if METHODS[method].name in ("Watch", "WatchJob"):
                stream.cancel()
                break
    except grpc.RpcError as error:
        refused = refusal_of(error)
        return Outcome(refused.code, refused.reason, refused.metadata.get("problem", ""), messages)
    return Outcome(grpc.StatusCode.OK, "", "", messages)


def in_scope(scope: Scope, target: str) -> bool:
    return {Scope.NONE: False, Scope.OWN: target == "own", Scope.SHARED: target != "other", Scope.ALL: True}[scope]


@pytest.mark.parametrize("method", IN_ORDER)
def test_every_method_without_a_valid_token(world: World, method: str) -> None:
    given = {("nobody", "none"): None, ("nobody", "empty"): "", ("nobody", "another"): "thalweg"}
    given |= {(role.value, kind): token for role in Role for kind, token in world.invalid[role].items()}
    for cell, token in given.items():
        found = call(world, method, token)
        if table.row(method).stranger:
            assert found.reason == "", (method, cell)
            continue
        assert found.code is grpc.StatusCode.UNAUTHENTICATED, (method, cell)
        assert found.reason == ("TOKEN_ENDED" if cell[1] in ("expired", "revoked") else "UNAUTHENTICATED"), (method, cell)
        assert found.messages == [], (method, cell)


@pytest.mark.parametrize("method", IN_ORDER)
def test_every_method_with_every_role(world: World, method: str) -> None:
    row, name = table.row(method), METHODS[method].name
    about_jobs = "job_id" in METHODS[method].input_type.fields_by_name or name == "Work"
    for role in Role:
        scope: Scope = getattr(row, role.value)
        for target in TARGETS if about_jobs or name in OF_UPLOADS else TARGETS[:1]:
            cell, found = (method, role.value, target), call(world, method, world.tokens[role], target)
            # Own jobs are the submitter's, and the worker works for one of them.
            whose = "other" if target == "own" and role not in (Role.SUBMITTER, Role.WORKER) else target
            if row.stranger:
                assert found.reason == "", cell
            elif scope is Scope.NONE:
                assert (found.code, found.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"), cell
                assert f"its role is {role.value}" in found.problem, cell
            elif in_scope(scope, whose) or not (about_jobs or name in OF_UPLOADS):
                refusals = ("UNAUTHENTICATED", "TOKEN_ENDED", "PERMISSION_DENIED", "JOB_NOT_FOUND", "DATA_NOT_FOUND")
                assert found.reason not in (*refusals, "INTERNAL"), cell
                assert found.code is not grpc.StatusCode.UNIMPLEMENTED or name == "List", cell
                if name == "GetUpload":
                    assert pb.GetUploadResponse.FromString(found.messages[0]).whole, cell
                if name == "UploadData":
                    assert found.reason == "", cell
            elif name == "GetUpload":
                # To others the file is not there.
                assert found.messages == [b""], cell
            elif name == "UploadData":
                # It must be sent.
                assert found.reason == "INVALID_ARGUMENT", cell
            elif name == "DownloadData":
                assert found.reason == "DATA_NOT_FOUND", cell
            elif name == "Work" or in_scope(getattr(table.row(SEES), role.value), whose):
                assert found.reason == "PERMISSION_DENIED", cell
                assert "role" not in found.problem, cell
            else:
                assert found.reason == "JOB_NOT_FOUND", cell


def test_each_method_has_a_row_and_each_row_a_method() -> None:
    assert sorted(table.TABLE) == sorted(METHODS)


def test_a_method_without_a_row_is_refused_to_all() -> None:
    row = table.row("/thalweg.v1.TrainingService/Sell")
    assert {row.scope(role) for role in Role} == {Scope.NONE}
    assert not row.stranger


def test_administrators_may_do_all_and_strangers_only_what_tells_nothing() -> None:
    for method, row in table.TABLE.items():
        assert row.admin is Scope.ALL, method
        assert row.stranger == (re.search("Health/Check$|ShardConfirmationService/Confirm$", method) is not None), method
