"""What a job's driver and its connections ask of the job's arrays, wherever these are."""

from collections.abc import Callable
from typing import Protocol

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.deciding.decisions import Decision, ForArrays
from thalweg.server.deciding.events import Event
from thalweg.server.deciding.values import WorkerId
from thalweg.v1 import parameter_service_pb2


class Arrays(Protocol):
    """The arrays of one running job: the executor of what is decided for them. Copies are made of them while training goes on."""

    @property
    def parameters(self) -> Parameters:
        """Those that are here."""
        ...

    @property
    def expected(self) -> Parameters | None:
        """What the chunks that workers send are to fit, as `parameters`; None as long as no chunk is expected."""
        ...

    @property
    def version(self) -> int:
        """The current version."""
        ...

    @property
    def trajectory(self) -> Trajectory:
        """The snapshots so far."""
        ...

    @property
    def broken(self) -> bool:
        """Whether a shard could not do its part, so that the parameters cannot be had."""
        ...

    def carry_out(self, decision: ForArrays) -> Event | None:
        """Computes what was decided. Gives an event if the decisions after it assume something that did not happen."""
        ...

    def ready(self, decision: Decision) -> bool:
        """Whether a decision may be carried out, or shards have to answer before."""
        ...

    def in_turn(self, event: Event) -> list[Event]:
        """The events whose turn it is, with another one that came from a worker."""
        ...

    def decided(self, event: Event, decisions: list[Decision]) -> None:
        """Takes note of what was decided about an event."""
        ...

    def invite(self, worker: WorkerId) -> list[parameter_service_pb2.ShardRange]:
        """Lets a worker come to the shards, and says how."""
        ...

    def announce(self, worker: WorkerId, task: parameter_service_pb2.WorkResponse) -> None:
        """Has shards send a worker a task, after the parameters that it is for. It comes from here as well."""
        ...

    def send(self, workers: tuple[WorkerId, ...], version: int, chunks: range) -> range:
        """Has shards send workers their parts of some chunks. The chunks that are left are to be sent from here."""
        ...

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone."""
        ...

    def load(self, version: int, parameters: Slab, state: OptimizerState | None) -> None:
        """Takes a version's place. `state` is None before the first step, and may be that of an earlier release.

        Raises ValueError if it does not fit.
        """
        ...

    def offer(self) -> None:
        """Lets the trajectory have the current version, if it wants it."""
        ...

    def copy(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        """Has the parameters, and the optimizer's state if that is wanted, copied as they are now.

        Calls `then` with the slabs by name, in the order in which this was called: at once if they are small and all here, else
        when all parts have been copied, or have come; if they do. Raises MemoryError if there is no room for them.
        """
        ...

    def hand_over(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        """As `copy`, when nothing changes the arrays any more: if all are here, they are not copied."""
        ...

    def needs(self, shard: ShardLink) -> bool:
        """Whether a shard holds a part that has not come back."""
        ...

    def close(self) -> None:
        """Nothing is needed any more: frees the arrays, here and at shards, except those that others still reference."""
        ...
