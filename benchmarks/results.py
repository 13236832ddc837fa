"""What came of the measurements: medians, their spread, and the ratios that say more than any machine's times."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# For each kind of ratio, the system that others are divided by.
BASES = {
    "ratio_to_ddp": "ddp",
    "ratio_to_ddp_default": "ddp_default",
    "ratio_to_ray": "ray",
    "fraction_of_limit": "limit",
}


@dataclass
class Measured:
    """What was measured of a workload: steps per second of each repetition, by system; and why other systems are missing."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, and all."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": list(values)}


def ratios(medians: Mapping[str, float], base: str) -> dict[str, float]:
    """Every median divided by that of a system; nothing, if that was not measured."""
    return {name: median / medians[base] for name, median in medians.items()} if base in medians else {}


def of_workload(title: str, measured: Measured) -> dict[str, Any]:
    """The results of a workload: `steps_per_second` by system, and the ratios of their medians."""
    rates = {name: summary(values) for name, values in measured.rates.items() if values}
    medians = {name: float(rate["median"]) for name, rate in rates.items()}
    compared = {kind: ratios(medians, base) for kind, base in BASES.items()}
    return {"title": title, "steps_per_second": rates, **compared, "unavailable": measured.unavailable}
