"""Synchrony policies: when contributions are applied. Each is one file of decisions and one line here."""

from thalweg.server.plan import Plan
from thalweg.server.synchrony.base import Policy
from thalweg.server.synchrony.bulk import Bulk
from thalweg.v1 import job_pb2

POLICIES: dict[str, type[Policy]] = {
    "bulk": Bulk,
}


def make(spec: job_pb2.Synchrony, plan: Plan) -> Policy:
    """The policy that a specification names."""
    kind = spec.WhichOneof("policy")
    if kind is None:
        raise ValueError("a complete specification names a synchrony policy")
    return POLICIES[kind](plan)
