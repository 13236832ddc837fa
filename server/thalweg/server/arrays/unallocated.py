"""The arrays of a job whose course is not known yet: there are none."""

from collections.abc import Callable
from typing import NoReturn

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.deciding.decisions import Decision, ForArrays
from thalweg.server.deciding.events import Event
from thalweg.server.deciding.impossible import ImpossibleError
from thalweg.server.deciding.values import WorkerId
from thalweg.v1 import parameter_service_pb2


class Unallocated:
    """Workers may come, speak and go. Whatever needs arrays raises ImpossibleError: nobody may ask for it before `Allocate`."""

    expected = None
    broken = False

    @property
    def parameters(self) -> Parameters:
        """Raises ImpossibleError."""
        _impossible("parameters are read")

    @property
    def version(self) -> int:
        """Raises ImpossibleError."""
        _impossible("a version is asked for")

    @property
    def trajectory(self) -> Trajectory:
        """Raises ImpossibleError."""
        _impossible("the trajectory is asked for")

    def carry_out(self, decision: ForArrays) -> Event | None:
        """Raises ImpossibleError."""
        _impossible(f"{type(decision).__name__} is decided")

    def ready(self, decision: Decision) -> bool:  # noqa: ARG002
        """Nothing waits for shards."""
        return True

    def in_turn(self, event: Event) -> list[Event]:
        """The event: chunks come in order, as there are none."""
        return [event]

    def decided(self, event: Event, decisions: list[Decision]) -> None:
        """Nothing is kept anywhere."""

    def invite(self, worker: WorkerId) -> list[parameter_service_pb2.ShardRange]:
        """Raises ImpossibleError."""
        _impossible(f"worker {worker} is admitted")

    def announce(self, worker: WorkerId, task: parameter_service_pb2.WorkResponse) -> None:  # noqa: ARG002
        """Raises ImpossibleError."""
        _impossible(f"worker {worker} is given a task")

    def send(self, workers: tuple[WorkerId, ...], version: int, chunks: range) -> range:  # noqa: ARG002
        """Raises ImpossibleError."""
        _impossible(f"version {version} is sent")

    def leave(self, worker: WorkerId) -> None:
        """No shard knows the worker."""

    def load(self, version: int, parameters: Slab, state: OptimizerState | None) -> None:  # noqa: ARG002
        """Raises ImpossibleError."""
        _impossible(f"version {version} is loaded")

    def offer(self) -> None:
        """Raises ImpossibleError."""
        _impossible("a version is whole")

    def copy(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:  # noqa: ARG002
        """Raises ImpossibleError."""
        _impossible("a copy is made")

    def hand_over(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:  # noqa: ARG002
        """Raises ImpossibleError."""
        _impossible("the arrays are handed over")

    def needs(self, shard: ShardLink) -> bool:  # noqa: ARG002
        """No shard holds anything."""
        return False

    def close(self) -> None:
        """There is nothing to be freed."""


def _impossible(what: str) -> NoReturn:
    raise ImpossibleError(f"{what} before the job's arrays are allocated")
