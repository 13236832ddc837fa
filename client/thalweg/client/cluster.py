"""A server's fleets and their nodes, for operators."""

from thalweg.client.connection import Connection
from thalweg.v1 import cluster_service_pb2 as pb


class Cluster:
    """The fleets of a server. Made by `Client.cluster`. Every failure raises ThalwegError.

    A target is the name of a fleet, `FLEET/NODE`, or the name of a node, if no other node has it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> pb.ListFleetsResponse:
        """The fleets that are connected, their nodes and workers, and what is cordoned."""
        return self._connection.call(self._connection.cluster.ListFleets, pb.ListFleetsRequest())

    def cordon(self, target: str) -> pb.Cordon:
        """Starts no more workers at a target. Those that are there stay."""
        return self._connection.call(self._connection.cluster.Cordon, pb.CordonRequest(target=target)).cordon

    def uncordon(self, target: str) -> pb.Cordon:
        """Lets a target have workers again."""
        return self._connection.call(self._connection.cluster.Uncordon, pb.UncordonRequest(target=target), retry=False).cordon

    def drain(self, target: str, *, now: bool = False) -> pb.Cordon:
        """Lets the workers at a target go, each after the task that it has, or `now`. Returns at once."""
        return self._connection.call(self._connection.cluster.Drain, pb.DrainRequest(target=target, now=now)).cordon

    def end_server(self, seconds: float) -> None:
        """Has the server stop when its workers have finished the tasks that they have, after some seconds at the latest.

        Returns at once.
        """
        self._connection.call(self._connection.cluster.DrainServer, pb.DrainServerRequest(seconds=seconds))


def workers_at(fleets: pb.ListFleetsResponse, place: pb.Cordon) -> int:
    """How many workers are connected at a place."""
    return sum(
        len(node.workers)
        for fleet in fleets.fleets
        for node in fleet.nodes
        if fleet.name == place.fleet and place.node in ("", node.name)
    )
