"""The settings of a fleet."""

import platform
from dataclasses import dataclass, field
from pathlib import Path

from thalweg.contract.endpoint import Endpoint
from thalweg.workers.data_access import DEFAULT_POLICY, DataPolicy


@dataclass(frozen=True)
class FleetConfig:
    """The settings of a fleet, on the Ray cluster at `ray_address`, or, if that is None, on its own Ray with `slots` CPU slots.

    `ray_token_file` holds the cluster's token; if None, Ray looks for it. A cluster that requires none is refused, unless
    `trust_network`.

    `allow_code` is whether workers run code of jobs' authors; `allow_requirements` whether Ray installs packages for such jobs.
    `data` is what jobs' data may use of nodes.
    """

    server: Endpoint
    ray_address: str | None = None
    ray_token_file: Path | None = None
    trust_network: bool = False
    slots: int | None = None
    allow_code: bool = False
    allow_requirements: bool = False
    data: DataPolicy = DEFAULT_POLICY
    name: str = field(default_factory=platform.node)
