"""How a step's work is divided among workers. The result of the step does not depend on it."""

from collections.abc import Iterator
from typing import NamedTuple

from thalweg.contract import tree
from thalweg.contract.tree import Node
from thalweg.server.messages import Task, WorkerId
from thalweg.server.plan import Plan


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
        return [(workers[share], Part(root, chunk, chunk + 1)) for chunk, share in enumerate(_deal(plan.chunks, shares))]
    return [
        (worker, Part(node, 0, plan.chunks))
        for worker, run in zip(workers, _runs(plan.microbatches, shares), strict=True)
        for node in ([Node(0, each) for each in run] if plan.one_by_one else tree.cover(run, plan.microbatches))
    ]


def size(plan: Plan, task: Task) -> float:
    """How much work a task is, in microbatches."""
    return len(task.node.leaves(plan.microbatches)) * (task.end_chunk - task.first_chunk) / plan.chunks


def _runs(total: int, weights: list[float]) -> Iterator[range]:
    """Cuts `total` into runs in proportion to weights."""
    whole, sofar, start = sum(weights), 0.0, 0
    for index, weight in enumerate(weights, 1):
        sofar += weight
        # What rounding leaves over of the last run is not lost.
        end = total if index == len(weights) else int(total * sofar / whole + 1e-9)
        yield range(start, end)
        start = end


def _deal(total: int, weights: list[float]) -> Iterator[int]:
    """Who gets each of `total` items, so that at any time each has its part, in proportion to its weight."""
    dealt = [0] * len(weights)
    for _ in range(total):
        share = min(range(len(weights)), key=lambda each: (dealt[each] + 1) / weights[each])
        dealt[share] += 1
        yield share
