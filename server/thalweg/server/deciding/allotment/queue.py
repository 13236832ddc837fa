"""Which jobs may have workers, on a server that runs a limited number at a time."""

from collections.abc import Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A job that has not ended, as far as its place is concerned."""

    job_id: str
    priority: int = 0
    # A job that has begun keeps its place.
    begun: bool = False
    # Whether a fleet could give it a worker, if that fleet had nothing else to do.
    servable: bool = True


class Queue(NamedTuple):
    """The jobs that have a place, in order, and how many are before each job that waits for one."""

    places: dict[str, None]
    before: dict[str, int]


def choose(limit: int, candidates: Sequence[Candidate]) -> Queue:
    """Gives at most `limit` places to the candidates, which come in the order in which they were accepted; 0 is no limit.

    Jobs that have begun come first, then the others: by priority, then as they were accepted. One that has not begun and that no
    fleet could serve neither has a place nor waits for one.
    """
    ordered = sorted(candidates, key=lambda each: -each.priority)
    if not limit:
        return Queue(dict.fromkeys(each.job_id for each in ordered), {})
    ordered = [each for each in ordered if each.begun or each.servable]
    chosen = set(sorted(ordered, key=lambda each: not each.begun)[:limit])
    waiting = [each.job_id for each in ordered if each not in chosen]
    places = dict.fromkeys(each.job_id for each in ordered if each in chosen)
    return Queue(places, {job_id: before for before, job_id in enumerate(waiting, len(places))})
