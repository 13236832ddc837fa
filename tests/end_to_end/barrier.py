"""A barrier at which jobs wait at a step, wherever their workers are, until a test lets them continue."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from tests.end_to_end.command import wait_for
from tests.hook import sitecustomize as hook
from thalweg.workers import worker

ANY = "*"


class Environment(TypedDict):
    """The variables with which a command's processes obey a barrier."""

    PYTHONPATH: str
    THALWEG_TEST_BARRIER: str


class Barrier:
    """Workers begin no gradient of a held step. `job` is a job's id, or `ANY` for all that are not named themselves.

    Nothing is held at first. A held worker sends heartbeats, and hears nothing from the server before it is released: a job that
    is held two steps or more after the end of an epoch has been evaluated then.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._steps: dict[str, int | None] = {}

    @property
    def environment(self) -> Environment:
        """For the commands whose workers are to obey it."""
        return {"PYTHONPATH": str(Path(hook.__file__).parent), "THALWEG_TEST_BARRIER": str(self._file)}

    def hold(self, step: int, job: str = ANY) -> None:
        """A job takes `step` steps, and no more."""
        self._write({**self._steps, job: step})

    def release(self, job: str = ANY) -> None:
        """A job continues to its end. With `ANY`, each does."""
        self._write({} if job == ANY else {**self._steps, job: None})

    def step_until(self, steps: Callable[[], int], condition: Callable[[], Any]) -> Any:
        """Waits until a condition holds, and gives its value. A held job, which has taken `steps()`, steps meanwhile."""

        def look() -> Any:
            value = condition()
            if not value:
                self.hold(steps() + 1)
            return value

        return wait_for(look)

    def _write(self, steps: dict[str, int | None]) -> None:
        self._steps = steps
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(steps))
        new.replace(self._file)

    @contextmanager
    def here(self) -> Iterator[None]:
        """The workers that are threads of this process obey the barrier, which is released at the end."""
        undo = hook.hold(worker, self._file)
        try:
            yield
        finally:
            self.release()
            undo()
