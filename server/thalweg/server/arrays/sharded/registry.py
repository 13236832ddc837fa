"""The shards that are connected, as the server sees them: a queue of commands to each, and what each says."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from thalweg.server.deciding.plan import Plan
from thalweg.server.telemetry import Clock
from thalweg.v1 import shard_service_pb2 as pb

Listener: TypeAlias = Callable[[pb.HoldRequest], None]
# Commands in one message; one with a chunk in it ends the message, for those may not grow beyond gRPC's limit.
_MAX_COMMANDS = 256


class ShardLink:
    """A shard that is there: the server's end of its stream.

    `address` is where workers reach it, `tls_name` the name of its certificate, if that is not the address's host.
    """

    def __init__(self, address: str, clock: Clock = time.monotonic, tls_name: str = "") -> None:
        self.address = address
        self.tls_name = tls_name
        self.heard = clock()
        self._clock = clock
        self._shares: dict[int, Listener] = {}
        self._queue: deque[pb.ShareCommand] = deque()
        self._filled = asyncio.Event()
        self._ended = False

    @property
    def jobs(self) -> int:
        """The number of jobs of which it holds a range."""
        return len(self._shares)

    def begin(self, share: int, listener: Listener) -> None:
        """Passes what the shard says about a share to a listener."""
        self._shares[share] = listener

    def end(self, share: int) -> None:
        """Drops a share."""
        del self._shares[share]
        self.send(pb.ShareCommand(share=share, drop=pb.DropShare()))

    def send(self, command: pb.ShareCommand) -> None:
        """Queues a command."""
        self._queue.append(command)
        self._filled.set()

    def hear(self, message: pb.HoldRequest) -> None:
        """Takes what the shard says. Raises ThalwegError if it makes no sense."""
        self.heard = self._clock()
        # What it says of shares that are dropped was on its way.
        listener = self._shares.get(message.share)
        if listener:
            listener(message)

    def give_up(self) -> None:
        """Ends the stream of a shard that is gone or counts as lost."""
        self._ended = True
        self._filled.set()

    async def messages(self) -> AsyncIterator[pb.HoldResponse]:
        """What is queued, as it comes, until the shard is given up."""
        while not self._ended:
            await self._filled.wait()
            self._filled.clear()
            while self._queue and not self._ended:
                commands = [self._queue.popleft()]
                while self._queue and len(commands) < _MAX_COMMANDS and not commands[-1].HasField("load"):
                    commands.append(self._queue.popleft())
                yield pb.HoldResponse(commands=commands)


class ShardRegistry:
    """All shards that are there, in the order in which they came. Belongs to the server's event loop. `clock` gives seconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.attending: list[ShardLink] = []
        self.clock = clock
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """The number of a new share."""
        return next(self._numbers)

    def suitable(self, plan: Plan) -> list[ShardLink]:
        """The shards that a job is to be split over: few enough that each of them, and the server, has a chunk.

        Where differentiation is numerical, computing takes the time, and there is little to be sent.
        """
        return [] if plan.numerical else self.attending[: max(0, plan.chunks - 1)]

    def silent(self, seconds: float, missed: float = 0.0) -> list[ShardLink]:
        """Those that have said nothing for some seconds. For `missed` seconds before now nobody listened to them."""
        now = self.clock()
        for shard in self.attending:
            shard.heard = min(now, shard.heard + missed)
        return [shard for shard in self.attending if now - shard.heard > seconds]


def split(chunks: int, owners: int) -> list[range]:
    """Equal ranges of chunks, as far as that is possible, one for each owner."""
    ends = [owner * chunks // owners for owner in range(owners + 1)]
    return [range(start, end) for start, end in itertools.pairwise(ends)]
