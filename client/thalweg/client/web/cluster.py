"""The cluster as the page shows it: fleets, their slots and nodes, and shards."""

import time
from collections import Counter
from typing import Any

from thalweg.client.web.gateway import Credential, Gateway
from thalweg.v1 import cluster_service_pb2
from thalweg.v1 import training_service_pb2 as pb

# Several pages of one user share an answer that is not older.
_FRESH_SECONDS = 1.5
_MAX_KEPT = 100
# Nodes that are listed, and jobs of each.
MAX_NODES = 500
MAX_JOBS = 20
_CLOSURES = {
    cluster_service_pb2.CLOSURE_UNSPECIFIED: "",
    cluster_service_pb2.CLOSURE_CORDONED: "cordoned",
    cluster_service_pb2.CLOSURE_DRAINED: "drained",
}


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
            fleets = await self._gateway.fleets(credential)
            answer = described(await self._gateway.info(credential)) | nodes(fleets)
            if len(self._answers) >= _MAX_KEPT:
                self._answers.clear()
            self._answers[credential] = (now, answer)
        return answer


def nodes(told: cluster_service_pb2.ListFleetsResponse | None) -> dict[str, Any]:
    """The nodes of all fleets, None where they are not told, closed fleets, and whether the server is about to end."""
    if told is None:
        return {"nodes": None, "closed": {}, "draining": False}
    listed = [_node(fleet, node) for fleet in told.fleets for node in fleet.nodes]
    return {
        "nodes": sorted(listed, key=lambda node: (node["fleet"], node["name"]))[:MAX_NODES],
        "closed": {fleet.name: _CLOSURES[fleet.closure] for fleet in told.fleets if fleet.closure},
        "draining": told.draining,
    }


def _node(fleet: cluster_service_pb2.Fleet, node: cluster_service_pb2.FleetNode) -> dict[str, Any]:
    jobs = Counter(worker.job_id for worker in node.workers)
    return {
        "fleet": fleet.name,
        "name": node.name,
        "slots": node.slots,
        "used": sum(worker.slots for worker in node.workers),
        "gpus": node.gpus,
        "closed": _CLOSURES[max(fleet.closure, node.closure)],
        "jobs": [{"id": job, "workers": workers} for job, workers in sorted(jobs.items())[:MAX_JOBS]],
    }


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
