"""The numbers of a message, as a coordinator hands them from an event to a decision without looking inside."""

from typing import Protocol

from thalweg.contract.layout import Slab
from thalweg.server.deciding.plan import Plan


class Payload(Protocol):
    """Numbers of some chunks: here as they came, or kept by a shard."""

    @property
    def residual_since(self) -> int:
        """The step since which what encoding left of a gradient is in them, with error feedback."""
        ...

    def chunk(self, plan: Plan, chunk: int) -> Slab:
        """The values of one of the chunks, of shape (elements of the chunk), not copied. A shard's are not to be had here."""
        ...
