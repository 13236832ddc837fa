"""The settings of a fleet."""

import platform
from dataclasses import dataclass, field
from pathlib import Path

from thalweg.contract.endpoint import Endpoint


@dataclass(frozen=True)
class FleetConfig:
    """The settings of a fleet, on the Ray cluster at `ray_address`, or, if that is None, on its own Ray with `slots` CPU slots.

    `ray_token_file` holds the cluster's token; if None, Ray looks for it. A cluster that requires none is refused, unless
    `trust_network`.
    """

    server: Endpoint
    ray_address: str | None = None
    ray_token_file: Path | None = None
    trust_network: bool = False
    slots: int | None = None
    name: str = field(default_factory=platform.node)
