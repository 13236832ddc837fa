"""How this user's clients find the tokens of this user's servers."""

import stat
from pathlib import Path

import pytest

from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.tokens import find, published, state_home

HERE = Address("127.0.0.1", 7001)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's servers."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "thalweg" / "servers"


def test_a_token_is_found_while_its_server_runs(folder: Path) -> None:
    assert find(*HERE) is None
    with published([HERE, Address("::1", 7001)], "secret"):
        assert find(*HERE) == find("::1", 7001) == find("localhost", 7001) == "secret"
        assert find("127.0.0.1", 7002) is None
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert find(*HERE) is None
    assert list(folder.iterdir()) == []


def test_what_a_server_that_was_killed_left_is_no_token(folder: Path) -> None:
    with published([HERE], "secret"):
        (path,) = folder.iterdir()
    path.write_text("stale")
    assert find(*HERE) is None
    with published([HERE], "fresh"):
        assert find(*HERE) == "fresh"


def test_a_call_carries_the_token_that_the_server_made_for_itself() -> None:
    endpoint = Endpoint(HERE, "of another server")
    assert endpoint.metadata == (("authorization", "Bearer of another server"),)
    with published([HERE], "secret"):
        assert endpoint.metadata == Endpoint(HERE).metadata == (("authorization", "Bearer secret"),)
        assert Endpoint(Address("host", 7001)).metadata == ()
        # What a server issued says who somebody is: it is not replaced by its operator's.
        assert Endpoint(HERE, "thalweg-abc").metadata == (("authorization", "Bearer thalweg-abc"),)
    assert Endpoint(HERE).metadata == ()


def test_without_a_home_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert find(*HERE) is None
    with pytest.raises(OSError, match="no home folder"):
        state_home()
