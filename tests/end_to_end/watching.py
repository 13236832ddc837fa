"""`thalweg watch --json` in the background, and what a job must come to whatever happens to it."""

import json
import threading
from functools import cache
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from tests.end_to_end.command import THALWEG, Running, wait_for
from tests.end_to_end.reference import reference
from thalweg.client import load_job
from thalweg.contract import layout as layouts
from thalweg.server import validation


@cache
def undisturbed(job: str, *settings: str) -> str:
    """The digest that a bulk-synchronous job ends with: that of a plain loop. Settings as in `training.epochs=3`."""
    spec = load_job(job, settings).spec
    with threadpool_limits(1, "blas"):
        return layouts.digest(reference(validation.complete(spec))[0])


class Watching:
    """One `thalweg watch JOB --json`, from the job's first event on, whose events are read as they come."""

    def __init__(self, home: Path, job: str, server: str, program: Path = THALWEG, **environment: str) -> None:
        self._command = Running(home, "watch", job, "--server", server, "--json", program=program, **environment)
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._command.process.stdout
        for line in self._command.process.stdout:
            self.events.append(json.loads(line))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind so far."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def steps(self) -> int:
        """How many steps the job has taken as it is now, as far as it is reported."""
        told = self.of("steps_taken")
        return int(told[-1]["first_step"]) + len(told[-1]["losses"]) if told else 0

    @property
    def workers(self) -> list[str]:
        """The names of the workers that are connected."""
        told = self.of("workers_changed")
        return list(told[-1]["names"]) if told else []

    @property
    def ended(self) -> bool:
        """Whether the job has ended, or watching has."""
        return not self._reader.is_alive()

    def until_steps(self, steps: int) -> None:
        """Waits until `steps` steps are taken, which must come before the end."""
        wait_for(lambda: self.steps >= steps or self.ended)
        assert not self.ended, f"the job was to be disturbed at step {steps}, and had ended: {self._command.stderr}"

    def until_workers(self, workers: int) -> None:
        """Waits until `workers` workers are connected, which must come before the end."""
        wait_for(lambda: len(self.workers) == workers or self.ended)
        assert not self.ended, f"the job was to have {workers} workers, and had ended: {self._command.stderr}"

    def end(self) -> str:
        """Waits for the end, holds the events to what is promised of them, and gives the state that the job ended in."""
        wait_for(lambda: self.ended)
        ended = self._command.end()
        assert ended.code == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        assert [event["sequence"] for event in self.events] == list(range(1, len(self.events) + 1))
        return str(self.events[-1]["state"])

    def stop(self) -> None:
        """Stops watching, if the job has not ended."""
        self._command.process.kill()
        self._reader.join()
        self._command.end()
