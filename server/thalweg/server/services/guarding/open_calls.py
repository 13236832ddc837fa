"""Calls end with the tokens that they were made with: streams may last for weeks."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from thalweg.contract.errors import ThalwegError
from thalweg.server.access.principal import Principal


class _Call:
    """A call that is under way, in a task. `problem` is why it is to end."""

    def __init__(self, task: "asyncio.Task[Any] | None") -> None:
        if task is None:
            raise RuntimeError("a call is answered in a task")
        self._task = task
        self.problem = ""

    def end(self, problem: str) -> None:
        """Ends the call, unless it is the present one: one may revoke one's own token."""
        if not self.problem and self._task is not asyncio.current_task():
            self.problem = problem
            self._task.cancel()

    def was_ended(self) -> bool:
        """Whether nothing but `end` cancelled the call."""
        return bool(self.problem) and not self._task.uncancel()


class OpenCalls:
    """The calls that are under way, by the names of their principals. Belongs to the server's event loop."""

    def __init__(self) -> None:
        self._of: defaultdict[str, set[_Call]] = defaultdict(set)

    @contextmanager
    def one_more(self, principal: Principal) -> Iterator[None]:
        """A principal's call is made within the context. Raises ThalwegError (TOKEN_ENDED) if its token ends meanwhile."""
        call = _Call(asyncio.current_task())
        seconds = None if principal.expires is None else max(0.0, principal.expires - time.time())
        timer = asyncio.get_running_loop().call_later(seconds, call.end, "has expired") if seconds is not None else None
        self._of[principal.name].add(call)
        try:
            yield
        except asyncio.CancelledError:
            if call.was_ended():
                raise ThalwegError("TOKEN_ENDED", {"name": principal.name, "problem": call.problem}) from None
            raise
        finally:
            if timer:
                timer.cancel()
            self._of[principal.name].discard(call)
            if not self._of[principal.name]:
                del self._of[principal.name]

    def end(self, name: str) -> None:
        """The token of a name was revoked: its calls end."""
        for call in list(self._of.get(name, ())):
            call.end("was revoked")
