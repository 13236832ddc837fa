"""Addresses."""

import pytest

from thalweg.contract.channel import Address, parse_address


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


@pytest.mark.parametrize("text", ["host:x", "host:99999", "http://host:1", "a b:1", "host:-1", "::1", "fe80::1", "fe80::1:70"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)]
)
def test_loopback(host: str, loopback: bool) -> None:
    assert Address(host, 1).is_loopback is loopback
