"""Threads that share out arithmetic."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from thalweg.contract.resources import cpus

T = TypeVar("T")


class ArithmeticPool:
    """A pool of `threads` threads including the caller's; by default one for each processor that this process may use."""

    def __init__(self, threads: int | None = None) -> None:
        self._helpers = (threads or cpus()) - 1
        self._pool = ThreadPoolExecutor(thread_name_prefix="thalweg-arithmetic", max_workers=max(1, self._helpers))

    def all(self, act: Callable[[T], bool], items: Iterable[T]) -> bool:
        """Does something to each item, in whatever thread is free. Whether it was true of all. Raises what `act` raises."""
        shared = iter(items)

        def work() -> bool:
            good = True
            # To take the next item of a range is one step, which no other thread interrupts.
            for item in shared:
                good &= act(item)
            return good

        helpers = [self._pool.submit(work) for _ in range(self._helpers)]
        try:
            good = work()
        finally:
            wait(helpers)
        return all([good, *(helper.result() for helper in helpers)])

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
