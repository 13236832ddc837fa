"""Addresses, and the one place that opens channels."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.end_to_end.cluster import running_server
from thalweg.contract.endpoint import Address, Endpoint, is_reached_directly, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:1", Address("host", 1)),
        ("host", Address("host", 7070)),
        (":9", Address("127.0.0.1", 9)),
        ("[::1]:5", Address("::1", 5)),
        ("[::1]", Address("::1", 7070)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["host:x", "host:99999", "http://host:1", "a b:1", "host:-1", "::1", "fe80::1", "fe80::1:70", "unix:/x", "[x]y:1", "a..b:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)]
)
def test_loopback(host: str, loopback: bool) -> None:
    assert Address(host, 1).is_loopback is loopback


PROXIED = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("no_proxy", "address", "direct"),
    [
        ("", "host:1", False),
        ("", "10.1.2.3:1", False),
        ("", "127.0.0.1:1", True),
        ("", "127.1.2.3:1", True),
        ("", "[::1]:1", True),
        ("", "localhost:1", True),
        ("", "LOCALHOST:1", True),
        ("", "db.localhost:1", True),
        ("", "0.0.0.0:1", True),
        ("*", "host:1", True),
        ("host", "host:1", True),
        ("other, host", "host:1", True),
        ("HOST", "host.:1", True),
        ("host", "myhost:1", False),
        ("example.com", "a.example.com:1", True),
        (".example.com", "a.example.com:1", True),
        ("*.example.com", "a.b.example.com:1", True),
        (".example.com", "badexample.com:1", False),
        ("10.0.0.0/8", "10.1.2.3:1", True),
        ("10.0.0.0/8", "11.1.2.3:1", False),
        ("10.0.0.0/8", "host:1", False),
        ("10.1.2.3", "10.1.2.3:1", True),
        ("10.1.2.3:1", "10.1.2.3:1", True),
        ("10.1.2.3:2", "10.1.2.3:1", False),
        ("host:1", "host:1", True),
        ("host:2", "host:1", False),
        ("fd00::/8", "[fd00::1]:1", True),
        ("[fd00::1]:1", "[fd00::1]:1", True),
        ("fd00::/8", "10.1.2.3:1", False),
        ("http://host, a/b, ,", "host:1", False),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_no_proxy_stands_before_this_machine_and_what_no_proxy_names(
    no_proxy: str, address: str, direct: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, no_proxy)
    assert is_reached_directly(parse_address(address)) is direct


def test_a_call_to_this_machine_passes_by_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens at the proxy: what goes there fails.
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, PROXIED)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def checked_by_asyncio(endpoint: Endpoint) -> int:
        async with endpoint.open_aio() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)).status)

    with running_server(tmp_path) as server:
        endpoint = Endpoint(server.address)
        with endpoint.open() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        assert asyncio.run(checked_by_asyncio(endpoint)) == health_pb2.HealthCheckResponse.SERVING


def test_the_token_goes_with_every_call() -> None:
    assert Endpoint(Address("host", 1), "secret").metadata == (("authorization", "Bearer secret"),)
    assert Endpoint(Address("host", 1)).metadata == ()
