"""The arrays of one running job, here or, in part, at shards: what is decided about them, and copies that are made of them."""

from collections.abc import Callable

import numpy as np

from thalweg.contract import resources
from thalweg.contract.layout import Slab
from thalweg.contract.resources import size_text
from thalweg.learning import optimizers
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.copies import Copies, Spare, between_events
from thalweg.server.arrays.parameters import PARAMETERS, Parameters
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.arrays.sharded import ShardedArrays
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.deciding.decisions import (
    ApplyRange,
    Decision,
    Keep,
    KeepInitial,
    MeasureGradient,
    Merge,
    Promote,
    ReportReady,
)
from thalweg.server.deciding.events import Event, RangeNotFinite
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import WorkerId
from thalweg.server.driving.decision_queue import DecisionQueue
from thalweg.server.driving.telemetry import Telemetry
from thalweg.server.sharding.registry import ShardLink, ShardRegistry
from thalweg.server.streams.memory_peers import JobSharing
from thalweg.v1 import parameter_service_pb2

# Bytes for which it pays to ask first whether they are available.
_MIN_CHECKED = 32 << 20


class Arrays:
    """Parameters, gradients, optimizer state and trajectory. `parameters` are those that are here.

    They are split over the shards that are there, if there are any that suit the job; else the parameters lie where `sharing`
    lets workers read them. `crew` shares in the arithmetic, `spare` gives time for copies. Raises MemoryError or ValueError if
    they do not fit.
    """

    def __init__(
        self,
        plan: Plan,
        sharing: JobSharing,
        shards: ShardRegistry | None,
        turns: DecisionQueue,
        telemetry: Telemetry,
        crew: ArithmeticPool | None = None,
        spare: Spare = between_events,
    ) -> None:
        self.trajectory = Trajectory(plan)
        self._telemetry = telemetry
        self._shares: ShardedArrays | None = None
        suitable = shards.suitable(plan) if shards else []
        if shards and suitable:
            sharing.withdraw()
            self._shares = ShardedArrays(plan, suitable, shards, turns, telemetry.exchange, crew, spare)
            self.parameters, self._copies = self._shares.parameters, self._shares.copies
            telemetry.notice(f"the parameters are split over this server and {', '.join(self._shares.addresses)}")
        else:
            self.parameters = Parameters(plan, sharing.allocate(plan.elements, np.dtype(plan.spec.model.dtype)), crew)
            self._copies = Copies(self.parameters, spare, turns.fail)

    @property
    def version(self) -> int:
        """The current version."""
        return self.parameters.version

    def load(self, version: int, parameters: Slab, state: OptimizerState | None) -> None:
        """Takes a version's place. `state` is None before the first step, and may be that of an earlier release.

        Raises ValueError if it does not fit.
        """
        if state is not None:
            state = optimizers.make(self.parameters.plan.optimizer).migrated(state)
        self._copies.before_change()
        (self._shares.load if self._shares else self.parameters.restore)(version, parameters, state)

    def copy(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        """Has the parameters, and the optimizer's state if that is wanted, copied as they are now.

        Calls `then` with the slabs by name, in the order in which this was called: at once if they are small and all here, else
        when all parts have been copied, or have come; if they do. Raises MemoryError if there is no room for them.
        """
        self._check_room(len(self.parameters.slabs) if state else 1)
        if self._shares:
            self._shares.copy(then, state=state)
        else:
            slabs: OptimizerState = {name: np.empty(slab.shape, slab.dtype) for name, slab in self._slabs(state).items()}
            self._copies.copy(slabs, lambda: then(slabs))

    def hand_over(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        """As `copy`, when nothing changes the arrays any more: if all are here, they are not copied."""
        if self._shares:
            self._shares.copy(then, state=state)
        else:
            self._copies.after(lambda: then(self._slabs(state)))

    def _check_room(self, slabs: int) -> None:
        """Raises MemoryError if fewer bytes are available than some slabs take: the system would end the process instead."""
        need = slabs * self.parameters.plan.elements * self.parameters.dtype.itemsize
        if need >= _MIN_CHECKED and need > (available := resources.memory().available):
            raise MemoryError(f"{size_text(need)} are needed, and {size_text(available)} are available")

    def _slabs(self, state: bool) -> OptimizerState:
        return {name: slab for name, slab in self.parameters.slabs.items() if state or name == PARAMETERS}

    def invite(self, worker: WorkerId) -> list[parameter_service_pb2.ShardRange]:
        """Lets a worker come to the shards, and says how."""
        return self._shares.invite(worker) if self._shares else []

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone."""
        if self._shares:
            self._shares.leave(worker)

    def in_turn(self, event: Event) -> list[Event]:
        """The events whose turn it is, with another one that came from a worker."""
        return self._shares.in_order(event) if self._shares else [event]

    def decided(self, event: Event, decisions: list[Decision]) -> None:
        """Takes note of what was decided about an event."""
        if self._shares:
            self._shares.decided(event, decisions)

    def ready(self, decision: Decision) -> bool:
        """Whether a decision may be carried out, or shards have to answer before."""
        return self._shares is None or self._shares.ready(decision)

    def forward(self, decision: Decision) -> Decision | None:
        """Has shards carry out their parts of a decision, and gives what is left of it."""
        return self._shares.forward(decision) if self._shares else decision

    def carry_out(self, decision: Decision) -> Event | None:
        """Computes what was decided. Gives an event if what else was decided takes for granted what did not happen."""
        parameters = self.parameters
        match decision:
            case Keep(step, node, chunks, payload):
                for chunk in chunks:
                    parameters.keep(step, node, chunk, payload.chunk(parameters.plan, chunk))
            case Merge(step, parent, chunks):
                for chunk in chunks:
                    parameters.merge(step, parent, chunk)
            case MeasureGradient(step):
                parameters.measure(step)
            case ApplyRange(version, step, chunks, factor):
                self._copies.before_update(version, chunks)
                if not parameters.apply(version, step, chunks, factor):
                    return RangeNotFinite(version)
            case Promote(version, step):
                parameters.promote(version, step)
                self._offer()
            case KeepInitial(chunk, payload):
                self._copies.before_change()
                parameters.keep_initial(chunk, payload.chunk(parameters.plan, chunk))
            case ReportReady():
                self._offer()
        return None

    def _offer(self) -> None:
        """Lets the trajectory have the current version, if it wants it."""
        version = self.version
        if self.trajectory.wants(version):
            try:
                self.copy(lambda slabs: self.trajectory.add(version, slabs[PARAMETERS]), state=False)
            except MemoryError as error:
                # A picture less is no failure.
                self._telemetry.notice(f"the trajectory lacks step {version:,}: there is no memory for a copy ({error})")

    @property
    def broken(self) -> bool:
        """Whether a shard could not do its part, so that the parameters cannot be had."""
        return self._shares is not None and self._shares.broken

    def needs(self, shard: ShardLink) -> bool:
        """Whether a shard holds a part that has not come back."""
        return self._shares is not None and self._shares.at(shard)

    def close(self) -> None:
        """Nothing is needed any more: frees the arrays, here and at shards, but for those that somebody else has."""
        if self._shares:
            self._shares.close()
        self._copies.drop()
        self.parameters.drop()
