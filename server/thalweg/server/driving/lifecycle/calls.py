"""Calls about jobs that wait for their answers."""

import asyncio
import itertools
from collections.abc import Callable

from thalweg.server.deciding.lifecycle.events import Ask


class Calls:
    """The calls that wait, each by a number of its own. Belongs to an event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[Ask, asyncio.Future[None]] = {}

    async def wait(self, begin: Callable[[Ask], object]) -> None:
        """Begins a call, which is given its number, and waits for its answer. Raises the error with which it is answered."""
        ask = next(self._numbers)
        answer = self._waiting[ask] = asyncio.get_running_loop().create_future()
        try:
            begin(ask)
            await answer
        finally:
            del self._waiting[ask]

    def answer(self, ask: Ask, error: Exception | None) -> None:
        """Answers a call, with an error if there is one. A call that was given up gets no answer."""
        answer = self._waiting.get(ask)
        if answer is None or answer.done():
            return
        if error:
            answer.set_exception(error)
        else:
            answer.set_result(None)
