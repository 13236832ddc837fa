"""Stale-synchronous training: workers may be some steps ahead of the slowest (Ho et al. 2013).

Step s is computed at version s - bound or later, and applied, as a whole and in order, when all its contributions are there.
"""

from collections.abc import Iterable

from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.rounds import Rounds


class Stale(Rounds):
    """Begins at most `bound` steps beyond the first one that is not applied."""

    def __init__(self, plan: Plan, version: int = 0, applied: Iterable[int] = ()) -> None:
        super().__init__(plan, version, applied, plan.spec.training.synchrony.stale.bound)
