"""This release and its protocol, so that incompatible peers are refused at once."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version

from thalweg.contract.errors import ThalwegError
from thalweg.v1 import fleet_service_pb2, parameter_service_pb2, shard_service_pb2

# The version of the protocol of workers, fleets, shards and servers. It grows with every change that an older peer would misread.
PROTOCOL = 6
_MAX_CHARACTERS = 50


@cache
def release() -> str:
    """The release of Thalweg that is installed here."""
    return version("thalweg")


def hello(
    *, job_id: str = "", worker: str = "", token: bytes = b"", place: parameter_service_pb2.Place | None = None
) -> parameter_service_pb2.Hello:
    """A worker's first message."""
    return parameter_service_pb2.Hello(
        job_id=job_id, worker=worker, token=token, place=place, protocol=PROTOCOL, release=release()
    )


def capacity(
    name: str,
    slots: int,
    *,
    fleet: str = "",
    nodes: Iterable[str] = (),
    of_nodes: Iterable[tuple[int, int]] = (),
    names: Iterable[str] = (),
    running: Iterable[fleet_service_pb2.Allotment] = (),
    allow_code: bool = False,
    allow_requirements: bool = False,
    leaving: bool = False,
) -> fleet_service_pb2.Capacity:
    """What a fleet says of itself, first and when it changes. `fleet` is its id, `leaving` whether it is about to end.

    `nodes`, `of_nodes` and `names` are the nodes' ids, CPU slots and GPUs, and names, in the same order.
    """
    nodes = tuple(nodes)
    capacities = [fleet_service_pb2.NodeCapacity(slots=cpus, gpus=gpus) for cpus, gpus in of_nodes]
    for each, node, called in zip(capacities, nodes, names, strict=False):
        each.id, each.name = node, called
    return fleet_service_pb2.Capacity(
        name=name,
        slots=slots,
        id=fleet,
        nodes=nodes,
        of_nodes=capacities,
        running=running,
        protocol=PROTOCOL,
        release=release(),
        allow_code=allow_code,
        allow_requirements=allow_requirements,
        leaving=leaving,
    )


def shard_offer(address: str, secret: bytes, tls_name: str = "") -> shard_service_pb2.ShardOffer:
    """A shard's first message: where it is reached, what confirms that, and the name of its certificate, if it is another."""
    return shard_service_pb2.ShardOffer(address=address, secret=secret, protocol=PROTOCOL, release=release(), tls_name=tls_name)


def check_protocol(peer: str, protocol: int, theirs: str) -> None:
    """Raises ThalwegError if a peer (a worker, a fleet or a shard) of some release speaks another protocol."""
    if protocol == PROTOCOL:
        return
    named = theirs[:_MAX_CHARACTERS] or "of unknown release"
    raise ThalwegError(
        "INCOMPATIBLE",
        {"peer": peer, "theirs": str(protocol), "release": named, "ours": str(PROTOCOL), "server": release()},
    )
