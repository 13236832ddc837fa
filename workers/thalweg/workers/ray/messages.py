"""What a fleet and the process that drives Ray for it say to each other, beside the allotments of `fleet_service.proto`."""

from dataclasses import dataclass, field
from pathlib import Path

from thalweg.contract.endpoint import Endpoint


@dataclass(frozen=True)
class Orders:
    """What a driver is told first. `fleet` is a name for people, `fleet_id` the one that the server knows the fleet by."""

    fleet: str
    fleet_id: str
    server: Endpoint
    ray_address: str | None
    slots: int
    parent: int
    # Whether the Ray cluster may be one that runs code for whoever reaches it.
    trust_network: bool = False
    # Where a Ray of its own keeps its files.
    folder: Path | None = None


@dataclass(frozen=True)
class Alive:
    """What a driver says several times a second: the CPU slots and the nodes of its cluster,
    and how many workers each job has, of how many slots each.

    If the server can be reached from this machine alone, these are the machine's nodes, and `unreachable` are the addresses of
    the cluster's other machines.
    """

    slots: int
    nodes: tuple[str, ...]
    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hold:
    """Tells a driver that the server cannot be reached: what runs goes on, and nothing new is started."""


@dataclass(frozen=True)
class Failed:
    """A driver's last words, if it has any: why it cannot go on."""

    problem: str
