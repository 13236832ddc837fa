"""Errors of clients, besides those of the catalogue that servers send. All are `ThalwegError`s."""

from typing import Any

from thalweg.contract.errors import ThalwegError, Violation


class LocalError(ThalwegError):
    """A problem of this machine that its user can solve: a missing extra, a full disk, a busy port."""

    def __init__(self, problem: str) -> None:
        super().__init__("LOCAL", {"problem": problem})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.metadata["problem"],)


class JobFailedError(ThalwegError):
    """A job ended as FAILED. `job` is its id, `error` the reason."""

    def __init__(self, job: str, error: str) -> None:
        super().__init__("JOB_ENDED", {"job": job, "state": "FAILED"})
        self.job = job
        self.error = error

    def __str__(self) -> str:
        return f"job {self.job} failed: {self.error}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job, self.error)


class JobFileError(ThalwegError):
    """A job file or a setting is wrong. `source` is the file, empty for a job that was given as a dictionary."""

    def __init__(self, source: str, violations: tuple[Violation, ...]) -> None:
        super().__init__("INVALID_ARGUMENT", violations=violations)
        self.source = source

    def __str__(self) -> str:
        prefix = f"{self.source}: " if self.source else ""
        return "\n".join(f"{prefix}{violation}" for violation in self.violations)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.violations)
