"""What a coordinator asks of a synchrony policy."""

from collections.abc import Iterable
from typing import Protocol

from thalweg.server.messages import ContributionReceived, Decision, WorkerId
from thalweg.server.plan import Plan


class Policy(Protocol):
    """Decides, while steps are taken, who computes what and when it is applied.

    `version` counts the updates applied. After each call the coordinator looks at it: at the end of an epoch it evaluates,
    and it calls `begin` for the next step.
    """

    version: int

    def __init__(self, plan: Plan) -> None: ...

    def begin(self, workers: Iterable[WorkerId]) -> list[Decision]:
        """Starts the next step with the workers that have the parameters."""
        ...

    def joined(self, worker: WorkerId) -> list[Decision]:
        """A worker got the parameters at `version`. Called during a step or between two."""
        ...

    def lost(self, worker: WorkerId) -> list[Decision]:
        """A worker is gone. Called during a step or between two."""
        ...

    def received(self, event: ContributionReceived) -> list[Decision]:
        """A chunk of a gradient arrived."""
        ...

    def applied_chunks(self) -> list[int]:
        """The chunks of the version after `version` that exist already."""
        ...
