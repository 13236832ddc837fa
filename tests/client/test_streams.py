"""Where a command's output goes: to streams of a narrow encoding, to closed streams, to paths that begin with a tilde."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from tests.client.conftest import Command
from thalweg.client.cli.app import app
from thalweg.client.cli.options import user_path

_MAIN = "from thalweg.command import main; main()"


def _run(shell: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a command as a process of its own; `shell` says how the shell sets up its streams."""
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", _MAIN, *arguments]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | environment)


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_characters_that_an_encoding_lacks_are_substituted(environment: dict[str, str]) -> None:
    ended = _run("", "gradcheck", "xor", **environment)
    assert ended.returncode == 0, ended.stderr
    assert b"1 ? 8" in ended.stdout
    assert ended.stderr == b""


@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(shell: str, tmp_path: Path) -> None:
    ended = _run(shell, "weights", "gate-1", "--data", str(tmp_path))
    assert ended.returncode == 1
    ended = _run(shell, "gradcheck", "xor")
    assert ended.returncode == 0, ended.stderr


def test_a_stream_on_a_full_disk_is_named_as_the_problem() -> None:
    ended = _run(">/dev/full", "gradcheck", "xor", "--json")
    assert (ended.returncode, ended.stderr) == (1, b"thalweg: cannot print: No space left on device\n")


def test_every_path_may_begin_with_a_tilde(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    commands = [each.callback for each in app.registered_commands]
    assert len(commands) > 10
    for each in filter(None, commands):
        for name, hint in get_type_hints(each, include_extras=True).items():
            kinds = {*get_args(get_args(hint)[0]), get_args(hint)[0]} if get_origin(hint) is Annotated else {hint}
            if Path in kinds:
                [details] = hint.__metadata__
                assert details.parser is user_path, f"{each.__name__}: {name}"
    assert command("jobs", "--data=~/nowhere").err == f"thalweg: --data: there is no folder {tmp_path}/nowhere\n"
