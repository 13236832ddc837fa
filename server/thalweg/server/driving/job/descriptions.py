"""The workers of a running job, as clients are told of them."""

from collections.abc import Callable, Iterable, Mapping

from thalweg.server.deciding.coordinator import Standing
from thalweg.server.deciding.values import Place, WorkerId
from thalweg.server.streams.connections import Connection
from thalweg.v1.training_service_pb2 import WorkerInfo


def described(
    connections: Iterable[Connection], standings: Mapping[WorkerId, Standing], lost_at: Callable[[Place], int]
) -> list[WorkerInfo]:
    """Workers, in order. `lost_at` says how many workers were lost on a place's node."""
    return [_described(each, standings.get(each.worker), lost_at(each.place)) for each in connections]


def _described(connection: Connection, standing: Standing | None, lost: int) -> WorkerInfo:
    info = WorkerInfo(name=connection.name, node=connection.place.name, lost_on_node=lost)
    # One that was given up a moment ago has none.
    if standing:
        info.prepared, info.silent_seconds, info.share = standing.prepared, standing.silent_seconds, standing.share
        if pace := standing.pace:
            info.microbatches_per_second = pace.rate or 0.0
            info.tasks, info.task_seconds, info.busy = pace.tasks, pace.task_seconds, pace.busy
    return info
