"""The ranges of a job's slab that shards hold."""

from typing import Any, NamedTuple

from thalweg.contract.layout import Slab
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.deciding.impossible import ImpossibleError
from thalweg.server.deciding.plan import Plan
from thalweg.v1 import shard_service_pb2 as pb


class Held(NamedTuple):
    """A payload whose numbers a shard keeps."""

    share: "RemoteRange"
    number: int
    residual_since: int = 0

    def chunk(self, plan: Plan, chunk: int) -> Slab:
        """Raises ImpossibleError: the numbers are not here."""
        raise ImpossibleError(f"chunk {chunk} of {plan.chunks} is kept by the shard {self.share.shard.address}")


class RemoteRange:
    """A range of the slab that a shard holds. `sums` are its part of the reduction that is under way, when they have come."""

    def __init__(self, shard: ShardLink, number: int, chunks: range) -> None:
        self.shard = shard
        self.number = number
        self.chunks = chunks
        self.sums: list[float] | None = None

    def send(self, **command: Any) -> None:
        """Queues a command, given by the field's name."""
        self.shard.send(pb.ShareCommand(share=self.number, **command))
