"""How a fleet runs."""

import platform
from dataclasses import dataclass, field
from pathlib import Path

from thalweg.contract.endpoint import Endpoint


@dataclass(frozen=True)
class FleetConfig:
    """How a fleet runs: on the Ray cluster at `ray_address`, or, if that is None, on a Ray of its own with `slots` CPU slots.

    `ray_token_file` holds the cluster's token; if None, it is where Ray itself looks. A cluster without one is refused, unless
    `trust_network`.
    """

    server: Endpoint
    ray_address: str | None = None
    ray_token_file: Path | None = None
    trust_network: bool = False
    slots: int | None = None
    name: str = field(default_factory=platform.node)
