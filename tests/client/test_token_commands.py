"""`thalweg tokens`: made, listed, revoked; and tokens that a server on this machine issued. `thalweg audit`: who did what."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.conftest import Command
from tests.end_to_end.cluster import running_server
from thalweg.contract import audit
from thalweg.contract.tokens import published
from thalweg.server.process import Server

OWN = "the operator's"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with running_server(tmp_path / "server", token=OWN) as server, published([server.address], OWN):
        monkeypatch.setenv("THALWEG_SERVER", str(server.address))
        yield server


@pytest.mark.usefixtures("server")
def test_tokens_are_made_listed_and_revoked(command: Command) -> None:
    made = command("tokens", "create", "ann", "--role", "viewer", "--expires", "90d")
    assert made.code == 0
    assert "not shown again" in made.err
    Path("ann").touch(0o600)
    Path("ann").write_text(made.out)
    # The server's own user has its token, but whoever names another one has that.
    refused = command("submit", "xor", "--token-file", "ann")
    assert refused.code == 1
    assert "its role is viewer" in refused.err
    assert command("jobs", "--token-file", "ann").code == 0
    table = command("tokens", "list")
    assert made.out.strip() not in table.out
    assert [line.split()[:2] for line in table.out.splitlines()] == [["name", "role"], ["ann", "viewer"]]
    assert command("tokens", "list", "--token-file", "ann").code == 1
    assert command("tokens", "revoke", "ann").out == "the token of ann is revoked\n"
    assert "the token of ann was revoked" in command("jobs", "--token-file", "ann").err
    (listed,) = command("tokens", "list", "--json").json["tokens"]
    assert (listed["name"], listed["role"], listed["valid"]) == ("ann", "viewer", False)
    assert listed["expires"] > listed["revoked"] > listed["created"]


@pytest.mark.usefixtures("server")
def test_a_token_goes_into_a_new_file_of_this_user(command: Command) -> None:
    printed = command("tokens", "create", "rack", "--role", "fleet", "-o", "rack.token", "--json")
    assert printed.code == 0
    assert "secret" not in printed.json
    assert stat.S_IMODE(Path("rack.token").stat().st_mode) == 0o600
    assert command("tokens", "create", "other", "--role", "fleet", "-o", "rack.token").code == 2
    # What is refused leaves no file.
    assert command("tokens", "create", "rack", "--role", "fleet", "-o", "more.token").code == 2
    assert not Path("more.token").exists()
    assert "--expires" in command("tokens", "create", "late", "--role", "fleet", "--expires", "soon").err


def test_an_audit_log_is_verified(tmp_path: Path, command: Command) -> None:
    path, chain = tmp_path / "audit.jsonl", audit.START
    with path.open("wb") as file:
        for number in (1, 2, 3):
            line, chain = audit.line_of({"number": number, **({"after": chain} if number == 1 else {})}, chain)
            file.write(line)
    assert command("audit", "verify", path) == (0, f"3 lines, unbroken; the last one has the chain {chain}\n", "")
    assert command("audit", "verify", path, "--json").json == {"unbroken": True, "lines": 3, "chain": chain}
    path.write_bytes(path.read_bytes().replace(b'"number": 2', b'"number": 9'))
    problem = f"{path}, line 2: was changed, or lines before it are missing"
    assert command("audit", "verify", path) == (1, "", f"thalweg: {problem}\n")
    assert command("audit", "verify", path, "--json").json["line"] == 2
    assert "cannot read" in command("audit", "verify", tmp_path / "none").err


def test_wrong_limits_are_told_before_the_server_starts(tmp_path: Path, command: Command) -> None:
    file, folder = tmp_path / "limits.toml", tmp_path / "data"
    for text, told in ((None, "cannot read"), ("workers =", "is not a TOML file"), ("[default]\njobs = 1", "default.jobs")):
        if text is not None:
            file.write_text(text)
        printed = command("serve", "--limits", file, "--data", folder, "--address", "127.0.0.1:0")
        assert printed.code == 2
        assert told in printed.err
    assert not folder.exists()
