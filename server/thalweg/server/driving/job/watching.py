"""Observers of what is decided about a job and carried out."""

from collections.abc import Callable
from typing import TypeAlias

from thalweg.server.deciding.decision_queue import Executor
from thalweg.server.deciding.values import WorkerId

# Puts an observer around the executor of a job, of which it gets the id, and the names of the workers that are there.
Watched: TypeAlias = Callable[[str, Executor, Callable[[WorkerId], str]], Executor]


def unwatched(_: str, executor: Executor, __: Callable[[WorkerId], str]) -> Executor:
    """No observer."""
    return executor
