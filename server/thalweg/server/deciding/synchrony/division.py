"""How a step's work is divided among workers. The result of the step does not depend on it."""

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from thalweg.contract import tree
from thalweg.contract.tree import Node
from thalweg.server.deciding.chunks import runs
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Task, WorkerId


class Part(NamedTuple):
    """What a task is, in whatever step: see `Task`."""

    node: Node
    first_chunk: int
    end_chunk: int


def divide(plan: Plan, weights: dict[WorkerId, float]) -> list[tuple[WorkerId | None, Part]]:
    """The parts of a step, and who is to have each; nobody if there are no workers. Faster workers, by their weights, get more.

    A worker's share is a run of microbatches, one by one or in as few nodes of the tree as cover it, or, where differentiation is
    numerical, chunks from all over the slab.
    """
    workers: list[WorkerId | None] = [*weights] or [None]
    shares = [*weights.values()] or [1.0]
    if plan.numerical:
        root = tree.root(plan.microbatches)
        chunks = [chunk for run in runs(plan.sent) for chunk in run]
        dealt = _deal(len(chunks), shares)
        return [(workers[share], Part(root, chunk, chunk + 1)) for chunk, share in zip(chunks, dealt, strict=True)]
    return [
        (worker, Part(node, 0, plan.chunks))
        for worker, run in zip(workers, _runs(plan.microbatches, shares), strict=True)
        for node in ([Node(0, each) for each in run] if plan.per_microbatch else tree.cover(run, plan.microbatches))
    ]


def size(plan: Plan, task: Task) -> float:
    """How much work a task is, in microbatches."""
    return len(task.node.leaves(plan.microbatches)) * (task.end_chunk - task.first_chunk) / plan.chunks


def _runs(total: int, weights: list[float]) -> Iterator[range]:
    """Cuts `total` into runs, so that the longest time that any worker takes for its run is as short as possible."""
    start = 0
    if len(set(weights)) == 1:
        for share in range(len(weights)):
            end = total * (share + 1) // len(weights)
            yield range(start, end)
            start = end
        return
    sizes = Counter(_deal(total, weights))
    for share in range(len(weights)):
        yield range(start, start + sizes[share])
        start += sizes[share]


def _deal(total: int, weights: list[float]) -> Iterator[int]:
    """Which share gets each of `total` items: the one that would finish first with one more, by its weight."""
    ends = [(1 / weight, share) for share, weight in enumerate(weights)]
    heapq.heapify(ends)
    for _ in range(total):
        end, share = ends[0]
        yield share
        heapq.heapreplace(ends, (end + 1 / weights[share], share))
