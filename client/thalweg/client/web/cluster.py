"""The cluster as the page shows it: fleets, their slots and what waits for them."""

import time
from typing import Any

from thalweg.client.web.gateway import Credential, Gateway
from thalweg.v1 import training_service_pb2 as pb

# Several pages of one user share an answer that is not older.
_FRESH_SECONDS = 1.5
_MAX_KEPT = 100


class Cluster:
    """What the server tells of itself, asked for no more often than it is of use."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._answers: dict[Credential, tuple[float, dict[str, Any]]] = {}

    async def now(self, credential: Credential) -> dict[str, Any]:
        """The cluster as it is. Raises ThalwegError."""
        now = time.monotonic()
        asked, answer = self._answers.get(credential, (0.0, {}))
        if not answer or now - asked > _FRESH_SECONDS:
            answer = described(await self._gateway.info(credential))
            if len(self._answers) >= _MAX_KEPT:
                self._answers.clear()
            self._answers[credential] = (now, answer)
        return answer


def described(info: pb.GetServerInfoResponse) -> dict[str, Any]:
    """A server's description of itself."""
    return {
        "version": info.version,
        "max_running_jobs": info.max_running_jobs,
        "max_upload_bytes": info.max_upload_bytes,
        "fleets": [
            {"name": fleet.name, "slots": fleet.capacity, "allotted": fleet.allotted}
            for fleet in sorted(info.fleets, key=lambda fleet: fleet.name)
        ],
        "shards": [
            {"address": shard.address, "jobs": shard.jobs} for shard in sorted(info.shards, key=lambda shard: shard.address)
        ],
    }
