"""Synchrony policies: when contributions are applied. Each is one file of decisions and one line here."""

from collections.abc import Iterable

from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.asynchronous import Asynchronous
from thalweg.server.deciding.synchrony.base import Policy
from thalweg.server.deciding.synchrony.bulk import Bulk
from thalweg.server.deciding.synchrony.local import Local
from thalweg.server.deciding.synchrony.stale import Stale
from thalweg.v1 import job_pb2

POLICIES: dict[str, type[Policy]] = {
    "bulk": Bulk,
    "stale": Stale,
    "asynchronous": Asynchronous,
    "local": Local,
}


def make(spec: job_pb2.Synchrony, plan: Plan, version: int = 0, applied: Iterable[int] = ()) -> Policy:
    """The policy that a specification names, from the beginning or from where an earlier one was."""
    kind = spec.WhichOneof("policy")
    if kind is None:
        raise ValueError("a complete specification names a synchrony policy")
    return POLICIES[kind](plan, version, applied)
