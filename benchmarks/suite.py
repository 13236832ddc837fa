"""Measures workloads on systems, which take turns, so that what else the machine does falls on all of them."""

from collections.abc import Callable, Sequence

from benchmarks.program import Unavailable
from benchmarks.results import Measured
from benchmarks.systems import ProgramError, System
from benchmarks.workloads import Workload

# Takes what is measured now, and the result once it is known.
Tell = Callable[[Workload, System, float | str | None], object]


def measure(workload: Workload, systems: Sequence[System], repeats: int, seconds: float, tell: Tell) -> Measured:
    """Steps per second of each repetition of each system. A system that is not there, or fails, is left out from then on."""
    measured = Measured({system.name: [] for system in systems})
    for _ in range(repeats):
        for system in systems:
            if system.name in measured.unavailable:
                tell(workload, system, measured.unavailable[system.name])
                continue
            tell(workload, system, None)
            try:
                rate = system.rate(workload, seconds)
            except (Unavailable, ProgramError) as why:
                measured.unavailable[system.name] = str(why)
                measured.rates.pop(system.name)
                tell(workload, system, str(why))
            else:
                measured.rates[system.name].append(rate.steps / rate.seconds)
                tell(workload, system, rate.steps / rate.seconds)
    return measured
