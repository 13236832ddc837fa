"""The messages between a fleet and the process that drives Ray for it, besides the allotments of `fleet_service.proto`."""

from dataclasses import dataclass, field
from pathlib import Path

from thalweg.contract.endpoint import Endpoint
from thalweg.workers.data_access import DEFAULT_POLICY, DataPolicy


@dataclass(frozen=True)
class Orders:
    """The first message to a driver. `fleet` is a name for people, `fleet_id` the fleet's id at the server."""

    fleet: str
    fleet_id: str
    server: Endpoint
    ray_address: str | None
    slots: int
    parent: int
    # Whether the Ray cluster may be one that runs code for everyone who reaches it.
    trust_network: bool = False
    # The folder for the files of the fleet's own Ray.
    folder: Path | None = None
    # Whether workers may run code of jobs' authors, and Ray install packages for them.
    allow_code: bool = False
    allow_requirements: bool = False
    data: DataPolicy = DEFAULT_POLICY


@dataclass(frozen=True)
class Alive:
    """A driver's report, several times a second: the CPU slots and the nodes of its cluster, the number of workers of each job,
    and the slots of each of them.

    If the server can be reached from this machine only, these are the machine's nodes, and `unreachable` are the addresses of
    the cluster's other machines.
    """

    slots: int
    nodes: tuple[str, ...]
    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    unreachable: tuple[str, ...] = ()
    # The CPU slots and the GPUs of each node.
    of_nodes: tuple[tuple[int, int], ...] = ()
    # The names of the nodes.
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hold:
    """Tells a driver that the server cannot be reached: workers continue, and no new ones are started."""


@dataclass(frozen=True)
class Failed:
    """A driver's last message, if it can send one: why it cannot continue."""

    problem: str
