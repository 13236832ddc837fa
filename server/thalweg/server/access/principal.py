"""Principals: who makes a call, and how services read that."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """What a principal is. The first four are those of tokens that operators make; a worker's token is made for one job."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    FLEET = "fleet"
    ADMIN = "admin"
    WORKER = "worker"


# The roles that a named token may have.
NAMED_ROLES = (Role.VIEWER, Role.SUBMITTER, Role.FLEET, Role.ADMIN)


class Principal(NamedTuple):
    """Who makes a call. `job` is the job that a worker works for, empty for everyone else.

    `expires` is when its token expires, in seconds since 1970; None for never.

    The name owns the jobs that its principal creates. No two principals with valid tokens have the same name.
    """

    name: str
    role: Role
    job: str = ""
    expires: float | None = None


# The bearer of the token of `--token-file`, and the only principal of a server without a token.
ADMIN = Principal("admin", Role.ADMIN)


class Scope(StrEnum):
    """Which jobs a role may use a method on. For a method that is not about a job, all but `NONE` mean that it may be called."""

    NONE = "none"
    # For a worker: its job. For all others: the jobs of which they are the owner.
    OWN = "own"
    # Own jobs, and those that their owners share.
    SHARED = "shared"
    ALL = "all"


@dataclass(eq=False)
class Act:
    """What the audit log says of a call besides who made it: what it was about, such as a job, and why it failed."""

    about: dict[str, str] = field(default_factory=dict)
    reason: str = ""


class Caller(NamedTuple):
    """Who makes the present call, of which method, and on which jobs the role table lets it."""

    principal: Principal
    method: str
    scope: Scope
    act: Act


_CALLER: ContextVar[Caller] = ContextVar("thalweg-caller")


def caller() -> Caller:
    """The caller of the gRPC call that is being answered. Raises LookupError outside of calls."""
    return _CALLER.get()


def note_failure(reason: str) -> None:
    """The present call, if it is one, fails for a reason of the catalogue."""
    found = _CALLER.get(None)
    if found:
        found.act.reason = reason


def answer_to(caller: Caller) -> None:
    """Says who makes the call that the present task answers."""
    _CALLER.set(caller)
