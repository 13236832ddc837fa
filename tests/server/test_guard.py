"""Tokens: asked for by every method of every service; and what is open to all."""

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.end_to_end.cluster import running_server
from tests.end_to_end.refusals import refusal
from thalweg.contract.endpoint import authorization
from thalweg.v1 import fleet_service_pb2, parameter_service_pb2, training_service_pb2

SERVICES = [
    service
    for module in (training_service_pb2, fleet_service_pb2, parameter_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
METHODS = [method for service in SERVICES for method in service.methods]
TOKEN = "correct horse"


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    with (
        running_server(tmp_path_factory.mktemp("data"), token=TOKEN) as server,
        grpc.insecure_channel(str(server.address)) as channel,
    ):
        yield channel


def call(channel: grpc.Channel, method: Any, metadata: Any, message: bytes = b"") -> Any:
    """Calls a method, of whatever kind it is, by default with an empty message."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    make: Any = channel.stream_stream(name, lambda message: message, lambda message: message)
    return make(iter([message]), metadata=metadata, timeout=30)


WRONG: dict[str, Any] = {
    "no token": (),
    "another token": authorization("wrong"),
    "a part of the token": authorization(TOKEN[:-1]),
    "more than the token": authorization(TOKEN + "x"),
    "an empty token": (("authorization", "Bearer "),),
    "the bare token": (("authorization", TOKEN),),
    "another scheme": (("authorization", f"Basic {TOKEN}"),),
    "another header": (("token", f"Bearer {TOKEN}"),),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_method_asks_for_the_token(channel: grpc.Channel, wrong: str) -> None:
    assert len(METHODS) >= 14
    for method in METHODS:
        refused = refusal(lambda method=method: call(channel, method, WRONG[wrong]))  # type: ignore[misc]
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), method.name
        assert "THALWEG_TOKEN" in refused.message
        assert TOKEN not in refused.message


def test_every_method_takes_the_token(channel: grpc.Channel) -> None:
    for method in METHODS:
        try:
            for _ in call(channel, method, authorization(TOKEN)):
                pass
        except grpc.RpcError as error:
            code: Any = error
            assert code.code() not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED), method.name


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    unknown: Any = channel.unary_unary("/thalweg.v1.TrainingService/NoSuchMethod")
    for metadata in ((), authorization(TOKEN)):
        refused = refusal(lambda metadata=metadata: unknown(b"", metadata=metadata, timeout=30))  # type: ignore[misc]
        assert refused.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", ["", *(service.full_name for service in SERVICES)])
def test_health_is_open_to_all(channel: grpc.Channel, service: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_is_watched_by_those_with_the_token(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest()
    assert refusal(lambda: stub.Watch(request, timeout=30)).code is grpc.StatusCode.UNAUTHENTICATED
    watch = stub.Watch(request, metadata=authorization(TOKEN), timeout=30)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def reflected(channel: grpc.Channel, metadata: Any) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), metadata=metadata, timeout=30)
    return {service.name for service in answer.list_services_response.service}


def test_reflection_names_the_services_to_those_with_the_token(channel: grpc.Channel) -> None:
    assert {service.full_name for service in SERVICES} <= reflected(channel, authorization(TOKEN))
    assert refusal(lambda: reflected(channel, ())).code is grpc.StatusCode.UNAUTHENTICATED


def test_a_server_without_a_token_asks_for_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_server(tmp_path_factory.mktemp("data")) as server, grpc.insecure_channel(str(server.address)) as channel:
        assert {service.full_name for service in SERVICES} <= reflected(channel, ())


def test_a_method_that_health_names_and_does_not_have_leaves_no_traceback(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    method: Any = channel.unary_unary("/grpc.health.v1.Health/List")
    assert refusal(lambda: method(b"", metadata=authorization(TOKEN), timeout=30)).code is grpc.StatusCode.UNIMPLEMENTED
    assert [record for record in caplog.records if record.exc_info] == []


def test_garbage_is_not_read_before_the_token_is_known(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    for method in METHODS:
        refused = refusal(lambda method=method: call(channel, method, (), b"\xff\xff\xff"))  # type: ignore[misc]
        assert refused.reason == "UNAUTHENTICATED", method.name
    assert caplog.records == []


def test_garbage_leaves_no_traceback(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    for method in METHODS:
        refused = refusal(lambda method=method: call(channel, method, authorization(TOKEN), b"\xff\xff\xff"))  # type: ignore[misc]
        assert refused.reason == "PROTOCOL_VIOLATION", method.name
    assert [record for record in caplog.records if record.levelno > logging.INFO or record.exc_info] == []
