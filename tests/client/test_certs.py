"""`thalweg certs`, and the options of TLS of all commands."""

import ssl
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.client.conftest import Command
from tests.end_to_end.cluster import running_server
from thalweg.client.cli.app import app
from thalweg.contract.tls import ServerTls

LOOPBACK = ["localhost", "127.0.0.1", "::1"]


def until(text: str) -> float:
    """The days from now."""
    return (datetime.fromisoformat(text) - datetime.now(UTC)) / timedelta(days=1)


def test_one_command_makes_all_that_a_cluster_needs(command: Command, tmp_path: Path) -> None:
    told = command("certs", "init", "tls", "--server", "train.example.com", "--server", "10.0.0.5", "--json").json
    assert [Path(each["cert"]).name for each in told["certificates"]] == ["server.pem", "fleet.pem", "client.pem"]
    assert told["certificates"][0]["hosts"] == ["train.example.com", "10.0.0.5", *LOOPBACK]
    assert [each["hosts"] for each in told["certificates"][1:]] == [[], []]
    assert 3649 < until(told["valid_until"]) <= 3650
    assert all(364 < until(each["valid_until"]) <= 365 for each in told["certificates"])
    for path in Path("tls").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.stem.endswith("-key") else 0o644)
    assert stat.S_IMODE(Path("tls").stat().st_mode) == 0o700
    assert len(list(Path("tls").iterdir())) == 8


def test_people_are_told_what_is_valid_until_when(command: Command) -> None:
    out = command("certs", "init", "tls", "--server", "h", "--days", "30").out
    then = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"
    assert "tls/ca.pem: the authority, valid until 20" in out
    assert f"tls/server.pem, server-key.pem: for a server at h, localhost, 127.0.0.1, ::1, valid until {then}\n" in out
    assert f"tls/client.pem, client-key.pem: for a client or a fleet, valid until {then}\n" in out


def test_one_more_is_made_and_one_that_is_there_is_replaced(command: Command) -> None:
    command("certs", "init", "tls", "--server", "10.0.0.5")
    before = Path("tls/server.pem").read_text()
    assert command("certs", "add", "tls", "alice", "--json").json["certificates"][0]["hosts"] == []
    shard = command("certs", "add", "tls", "shard1", "--server", "*.example.com", "--json").json["certificates"][0]
    assert shard["hosts"] == ["*.example.com", *LOOPBACK]
    again = command("certs", "add", "tls", "server", "--json").json["certificates"][0]
    assert again["hosts"] == ["10.0.0.5", *LOOPBACK]
    assert Path("tls/server.pem").read_text() != before
    # No certificate outlives its authority.
    long = command("certs", "add", "tls", "long", "--days", "3650", "--json").json
    assert long["certificates"][0]["valid_until"] == long["valid_until"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["init", "tls"], 1, "there is an authority in tls: add to it with thalweg certs add, or choose another folder"),
        (["init", "other", "--server", "host:7070"], 2, "--server: 'host:7070' is neither the name of a host nor an IP address"),
        (["init", "text/tls"], 1, "cannot make the folder text/tls: Not a directory"),
        (["add", "nowhere", "alice"], 1, "cannot read nowhere/ca.pem: No such file or directory; thalweg certs init makes"),
        (["add", "tls", "ca"], 2, "NAME: 'ca' cannot name a certificate"),
        (["add", "tls", "../x"], 2, "NAME: '../x' cannot name a certificate"),
        (["add", "bad", "alice"], 1, "bad/ca.pem and bad/ca-key.pem are not a certificate and its key"),
    ],
)
def test_mistakes(arguments: list[str], code: int, words: str, command: Command) -> None:
    command("certs", "init", "tls")
    Path("text").touch()
    Path("bad").mkdir()
    for name in ("ca.pem", "ca-key.pem"):
        (Path("bad") / name).write_text("nothing")
    printed = command("certs", *arguments)
    assert printed.code == code
    assert words in printed.err
    assert not Path("other").exists()


def test_without_the_extra_it_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    printed = command("certs", "init", "tls")
    assert printed.code == 1
    assert "pip install 'thalweg[tls]'" in printed.err
    assert not Path("tls").exists()


def options(command: Any, path: str = "") -> dict[str, set[str]]:
    """The options of each command."""
    found = {path: {option for parameter in command.params for option in parameter.opts}}
    for name, child in getattr(command, "commands", {}).items():
        found |= options(child, f"{path} {name}".strip())
    return found


def test_who_gives_a_token_can_use_tls() -> None:
    commands = {name: each for name, each in options(typer.main.get_command(app)).items() if "--token-file" in each}
    assert {"jobs", "submit", "train", "serve", "shard", "fleet"} < set(commands)
    for name, each in commands.items():
        assert {"--tls-ca", "--tls-cert", "--tls-key"} <= each, name
    assert {name for name, each in commands.items() if "--tls-client-ca" in each} == {"serve", "shard"}


def test_commands_connect_with_tls(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("certs", "init", "tls")
    pair = Path("tls/server.pem"), Path("tls/server-key.pem")
    with running_server(tmp_path / "data", tls=ServerTls(*pair, "tls/ca.pem")) as server:
        where = ("--server", server.address)
        own = ("--tls-cert", "tls/client.pem", "--tls-key", "tls/client-key.pem")
        assert command("jobs", *where, "--tls-ca", "tls/ca.pem", *own, "--json").json == {"jobs": []}
        refused = command("jobs", *where, "--tls-ca", "tls/ca.pem")
        assert refused.code == 1
        assert "if it requires certificates of its clients, give one that its authority signed" in refused.err
        wrong = command("jobs", *where, *own)
        assert wrong.code == 2
        assert "--tls-cert: needs --tls-ca" in wrong.err
        wrong = command("jobs", *where, "--tls-ca", "tls/ca-key.pem")
        assert wrong.code == 2
        assert "--tls-ca: " in wrong.err
        Path("tls/client-key.pem").chmod(0o644)
        printed = command("jobs", *where, "--tls-ca", "tls/ca.pem", *own, "--json")
        assert printed.json == {"jobs": []}
        assert "tls/client-key.pem is open to other users (mode 644): chmod 600" in printed.err
        Path("tls/client-key.pem").chmod(0o600)
        # A server that was started on a folder is found there, and needs the same.
        assert command("jobs", "--data", tmp_path / "data", "--tls-ca", "tls/ca.pem", *own, "--json").json == {"jobs": []}

        monkeypatch.setenv("THALWEG_TLS_CA", "tls/ca.pem")
        monkeypatch.setenv("THALWEG_TLS_CERT", "tls/client.pem")
        monkeypatch.setenv("THALWEG_TLS_KEY", "tls/client-key.pem")
        monkeypatch.setenv("THALWEG_SERVER", str(server.address))
        assert command("jobs", "--json").json == {"jobs": []}
    # This machine's own jobs have no certificates.
    monkeypatch.delenv("THALWEG_SERVER")
    assert command("jobs", "--json").json == {"jobs": []}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--tls-cert", "tls/server.pem"], "--tls-cert: needs --tls-key"),
        (["serve", "--tls-client-ca", "tls/ca.pem"], "--tls-client-ca: needs --tls-cert"),
        (["serve", "--tls-cert", "tls/client.pem", "--tls-key", "tls/client-key.pem"], "--tls-cert: "),
        (["shard", "--tls-ca", "tls/ca.pem"], "--tls-ca: goes with --tls-cert and --tls-key"),
        (["shard", "--tls-cert", "tls/server.pem", "--tls-key", "tls/server-key.pem"], "--tls-ca: goes with --tls-cert"),
        (["fleet", "--tls-cert", "tls/client.pem"], "--tls-cert: needs --tls-ca"),
    ],
)
def test_servers_and_fleets_say_what_is_wrong_before_they_start(arguments: list[str], words: str, command: Command) -> None:
    command("certs", "init", "tls")
    printed = command(*arguments)
    assert printed.code == 2
    assert words in printed.err


def test_certificates_are_those_that_strict_verifiers_take(command: Command) -> None:
    command("certs", "init", "tls")
    context = ssl.create_default_context(cafile="tls/ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain("tls/server.pem", "tls/server-key.pem")
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [context.wrap_bio(one, other, server_hostname="localhost"), server.wrap_bio(other, one, server_side=True)]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
