"""The `thalweg` command as users run it: a process of its own, with a home of its own, that leaves no other running."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from thalweg.contract.tokens import state_home

THALWEG = Path(sys.executable).with_name("thalweg")
# By this variable the processes that a command leaves running are found.
_MARK = "THALWEG_TEST_MARK"
_PATIENCE = 120.0
# How long what is ending may take to end.
_LEAVING = 5.0


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> Any:
        """The last line of stdout, read as JSON."""
        return json.loads(self.stdout.splitlines()[-1])


class Running:
    """A command while it runs, in a process group of its own, as a shell would start it."""

    def __init__(self, home: Path, *arguments: str, program: Path = THALWEG, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        self.home = home
        self._errors = home / f"stderr-{self.mark}"
        home.mkdir(parents=True, exist_ok=True)
        # Where a Ray of its own makes its folder: with a short path, as its sockets need.
        self.ray = Path(tempfile.mkdtemp(prefix="t"))
        weakref.finalize(self, shutil.rmtree, self.ray, ignore_errors=True)
        rays = {"RAY_TMPDIR": str(self.ray)} if program == THALWEG else {}
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [str(program), *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=home,
                env=_environment(home) | {_MARK: self.mark} | rays | environment,
                start_new_session=True,
            )

    @property
    def stderr(self) -> str:
        """What was written there so far."""
        return self._errors.read_text()

    def line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.stderr
        return line

    def until(self, text: str) -> None:
        """Waits until stderr has some text."""
        wait_for(lambda: text in self.stderr or self.process.poll() is not None)
        assert text in self.stderr, self.stderr

    def interrupt(self) -> None:
        """Ctrl-C: a terminal sends it to all of the foreground's processes."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> Ended:
        """Waits for the end."""
        stdout, _ = self.process.communicate(timeout=_PATIENCE)
        return Ended(self.process.returncode, stdout, self.stderr)

    def processes(self) -> list[psutil.Process]:
        """The processes that it started, and that still run."""
        return [process for process in psutil.process_iter() if _has(process, self.mark)]

    def left_behind(self) -> list[str]:
        """Its `processes`, and its Ray's files. Gives those that are ending the time to end."""
        deadline = time.monotonic() + _LEAVING
        while True:
            _, alive = psutil.wait_procs(self.processes(), timeout=max(0.0, deadline - time.monotonic()))
            left = [*(" ".join(process.cmdline()) for process in alive), *map(str, self.ray.rglob("*"))]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)

    def assert_nothing_left(self) -> None:
        """Fails if it left a process running or a file of Ray's, and says which."""
        left = self.left_behind()
        assert left == [], left


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("THALWEG_", "RAY_"))}
    # Clients in this process find the token of a server that a command runs.
    return kept | {"HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "XDG_STATE_HOME": str(state_home())}


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def wait_for(condition: Callable[[], Any]) -> Any:
    """Waits until a condition holds, and gives its value."""
    deadline = time.monotonic() + _PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)
    return value


def thalweg(home: Path, *arguments: str, program: Path = THALWEG, **environment: str) -> Ended:
    """Runs a command to its end, and holds it to the rules for all: no traceback, and no process left running."""
    running = Running(home, *arguments, program=program, **environment)
    ended = running.end()
    assert "Traceback" not in ended.stderr + ended.stdout, ended.stderr
    running.assert_nothing_left()
    return ended


@contextmanager
def service(home: Path, *arguments: str, program: Path = THALWEG, **environment: str) -> Iterator[tuple[Running, dict[str, Any]]]:
    """A `serve` or `fleet` that runs for as long as the context, with what it announces."""
    running = Running(home, *arguments, "--json", program=program, **environment)
    try:
        yield running, json.loads(running.line())
    finally:
        running.process.terminate()
        ended = running.end()
        assert ended.code in (0, -signal.SIGKILL), ended.stderr
        running.assert_nothing_left()
