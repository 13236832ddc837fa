"""The metrics of a shard."""

from thalweg.server.observing.exposition import Families, gauge
from thalweg.server.sharding.host import ShardHost


class ShardSource:
    """Tells of the shares of one shard."""

    def __init__(self, host: ShardHost) -> None:
        self._host = host

    def unready(self) -> str:
        """A shard without a server holds nothing."""
        return "" if self._host.attached else "not connected to the server"

    async def observe(self) -> Families:
        """What is known in the event loop."""
        host = self._host
        return [
            gauge("thalweg_shard_attached", "1 while the server has the shard.", host.attached),
            gauge("thalweg_shard_shares", "Jobs that have a range of their parameters here.", host.shares),
            gauge("thalweg_shard_workers", "Workers that are connected, counted once for each job.", host.guests),
            gauge("thalweg_shard_chunks_kept", "Chunks of gradients about which the server has not decided.", host.kept),
        ]

    def inspect(self) -> Families:
        """A shard uses no disk."""
        return []
