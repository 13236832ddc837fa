"""What the model is asked: the measured cases, the workloads on a fast network and on a slow one, and ten thousand workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.parts.scaling import SLEEP
from benchmarks.scaling.constants import Constants, constants
from benchmarks.scaling.model import LAN, WAN, Model, Network, Training
from benchmarks.scaling.simulator import simulate
from benchmarks.workloads import WORKLOADS

# On the charts; the tables have their own.
COUNTS = (1, 2, 4, 8, 16, 64, 256, 1_000, 10_000)
ROUNDS = (1, 16, 64, 256)
WAN_CODECS = ("float32", "bfloat16", "int8", "top_k")
WAN_WORKERS = 8
SHARDED = (1, 4, 16)


@dataclass(frozen=True)
class Checked:
    """A measured step, or round, and what the model says. Seconds."""

    training: Training
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Of the whole step, as a part of what was measured."""
        return self.simulated / self.measured - 1

    @property
    def asleep(self) -> float:
        """What of a step the workers sleep."""
        return self.training.steps * SLEEP


class Scenarios:
    """Everything that the page and the charts show, from the results of the parts `constants` and `scaling`."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.constants: Constants = constants(results["parts"]["constants"]["rows"])
        self.machine = Network("one machine", self.constants.latency, float("inf"), results["machine"]["usable_cores"])

    def _rows(self) -> Sequence[Any]:
        part = self.results["parts"].get("scaling", {"rows": []})
        # What is not measured has no number there.
        return [row for row in part["rows"] if not isinstance(row[0], str)]

    @property
    def has_shards(self) -> bool:
        """Whether shards were measured."""
        return any(servers > 1 for _, _, servers, *_ in self._rows())

    def checked(self) -> list[Checked]:
        """What was measured, beside what the simulation says."""
        found = []
        for parameters, workers, servers, codec, steps, milliseconds in self._rows():
            job = Training(parameters, self.constants.sleep, workers, codec=codec, servers=servers, steps=steps, sleeps=True)
            found.append(Checked(job, milliseconds / 1000, self.on_this_machine(job)))
        return found

    def on_this_machine(self, job: Training) -> float:
        """The simulated seconds of a step of workers that all share the machine that was measured on."""
        return simulate(Model(job, self.machine, self.constants))

    def workload(self, name: str, workers: int, **other: Any) -> Training:
        """A workload with as many microbatches as workers."""
        workload = WORKLOADS[name]
        gradient = self.constants.gradient[name]
        return Training(workload.parameters, gradient, workers, optimizer=workload.optimizer, **other)

    def lan(self, name: str, workers: int, **other: Any) -> Model:
        """On a fast network, each process on a machine of its own."""
        return Model(self.workload(name, workers, **other), LAN, self.constants)

    def wan(self, name: str, steps: int, codec: str, workers: int = WAN_WORKERS) -> Model:
        """On a slow network."""
        return Model(self.workload(name, workers, steps=steps, codec=codec), WAN, self.constants)

    def without_end(self, model: Model) -> float:
        """Microbatches per second that no number of workers exceeds."""
        many, more = (replace(model.training, workers=count) for count in (10**6, 2 * 10**6))
        first, second = (Model(job, model.network, self.constants).seconds for job in (many, more))
        return 10**6 / (second - first)
