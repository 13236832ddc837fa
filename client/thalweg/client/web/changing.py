"""What grows version by version, and is waited for."""

import asyncio


class Changing:
    """`version` grows with each change. Belongs to an event loop."""

    def __init__(self) -> None:
        self.version = 0
        self._changed = asyncio.Event()

    async def change(self, version: int, seconds: float) -> None:
        """Waits until there is something newer than a version, at most for some seconds."""
        if self.version == version:
            try:
                await asyncio.wait_for(self._changed.wait(), seconds)
            except TimeoutError:
                return

    def _say(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()
