"""How long a server waits for a client that neither takes nor sends anything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from thalweg.contract.errors import ThalwegError

# A client that neither takes nor sends anything for so long has lost interest.
STALLED_SECONDS = 60.0


@asynccontextmanager
async def unless_stalled() -> AsyncIterator[asyncio.Timeout]:
    """Raises ThalwegError if waiting for a client, within the context, takes too long. Gives the timeout, which can be moved."""
    begun = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(STALLED_SECONDS) as timeout:
            yield timeout
    except TimeoutError:
        seconds = asyncio.get_running_loop().time() - begun
        raise ThalwegError("TOO_SLOW", {"seconds": f"{seconds:.3g}"}) from None
