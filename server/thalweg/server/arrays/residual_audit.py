"""Error feedback, as the server sees it: whether what encoding left of a microbatch's gradients comes with the next one."""

from thalweg.contract.tree import Node


class Residuals:
    """What is left of each node's gradients, by the step since which the worker that sent the last one has it.

    A worker begins with nothing. So where synchrony is `bulk` or `local`, what it has left of a node's gradients follows from
    that step alone: as long as it stays 0, what is applied is what a single worker would have sent.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[Node, int], int] = {}

    def lost(self, node: Node, chunk: int, since: int) -> bool:
        """Takes note of a chunk that is applied. Whether it is without what was left before, or without a part of it."""
        known = self._since.get((node, chunk), 0)
        self._since[node, chunk] = since
        return since != known
