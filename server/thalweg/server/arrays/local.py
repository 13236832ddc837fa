"""A job's arrays in this process: what is decided about them is computed here."""

from collections.abc import Callable
from typing import assert_never

import numpy as np

from thalweg.contract import resources
from thalweg.contract.layout import Slab
from thalweg.contract.resources import size_text
from thalweg.contract.tree import Node
from thalweg.learning import optimizers
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.copies import Copies, Spare
from thalweg.server.arrays.parameters import PARAMETERS, Parameters
from thalweg.server.arrays.residual_audit import Residuals
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.deciding.decisions import (
    ApplyRange,
    Decision,
    ForArrays,
    Keep,
    KeepInitial,
    Merge,
    Promote,
    Reduce,
)
from thalweg.server.deciding.events import Event, RangeNotFinite
from thalweg.server.deciding.payload import Payload
from thalweg.server.deciding.values import WorkerId
from thalweg.server.telemetry import Telemetry
from thalweg.v1 import parameter_service_pb2

# Bytes for which it pays to ask first whether they are available.
_MIN_CHECKED = 32 << 20


class LocalArrays:
    """See `Arrays`. `spare` gives time for copies; `failed` takes what is raised by what follows a copy."""

    def __init__(self, parameters: Parameters, telemetry: Telemetry, spare: Spare, failed: Callable[[Exception], object]) -> None:
        self.parameters = parameters
        self.trajectory = Trajectory(parameters.plan)
        self.broken = False
        self._telemetry = telemetry
        self._copies = Copies(parameters, spare, failed)
        self._residuals = Residuals()

    @property
    def expected(self) -> Parameters:
        """The parameters."""
        return self.parameters

    @property
    def version(self) -> int:
        """The current version."""
        return self.parameters.version

    def carry_out(self, decision: ForArrays) -> Event | None:
        """Computes what was decided. Gives an event if an update made parameters that are not finite."""
        match decision:
            case Keep(step, node, chunks, payload):
                if self.parameters.incoming.feedback:
                    self._audit(node, chunks, payload)
                self._keep(step, node, chunks, payload)
            case Merge(step, parent, chunks):
                self._merge(step, parent, chunks)
            case ApplyRange(version, step, chunks, factor):
                return self._apply(version, step, chunks, factor)
            case Promote(version, step):
                self._promote(version, step)
            case Reduce(version, step, reduction):
                self._reduce(version, step, reduction)
            case KeepInitial(chunk, payload):
                self._keep_initial(chunk, payload)
            case _:
                assert_never(decision)
        return None

    def _audit(self, node: Node, chunks: range, payload: Payload) -> None:
        """Counts a contribution that comes without what encoding left of the node's gradients before."""
        lost = [self._residuals.lost(node, chunk, payload.residual_since) for chunk in chunks]
        self._telemetry.contributions.lost_residuals += any(lost)

    def _keep(self, step: int, node: Node, chunks: range, payload: Payload) -> None:
        for chunk in chunks:
            self.parameters.keep(step, node, chunk, payload.chunk(self.parameters.plan, chunk))

    def _merge(self, step: int, parent: Node, chunks: range) -> None:
        for chunk in chunks:
            self.parameters.merge(step, parent, chunk)

    def _apply(self, version: int, step: int, chunks: range, factor: float) -> Event | None:
        self._copies.before_update(version, chunks)
        return None if self.parameters.apply(version, step, chunks, factor) else RangeNotFinite(version)

    def _promote(self, version: int, step: int) -> None:
        self.parameters.promote(version, step)
        self.offer()

    def _reduce(self, version: int, step: int, reduction: int) -> None:
        self.parameters.reduce(version, step, reduction)

    def _keep_initial(self, chunk: int, payload: Payload) -> None:
        self._copies.before_change()
        self.parameters.keep_initial(chunk, payload.chunk(self.parameters.plan, chunk))

    def ready(self, decision: Decision) -> bool:  # noqa: ARG002
        """Nothing waits for shards."""
        return True

    def in_turn(self, event: Event) -> list[Event]:
        """The event: a worker's chunks come one way, in order."""
        return [event]

    def decided(self, event: Event, decisions: list[Decision]) -> None:
        """A payload that no decision uses is freed with its last reference."""

    def invite(self, worker: WorkerId) -> list[parameter_service_pb2.ShardRange]:  # noqa: ARG002
        """There is no shard to come to."""
        return []

    def announce(self, worker: WorkerId, task: parameter_service_pb2.WorkResponse) -> None:
        """No shard has to hear of it."""

    def send(self, workers: tuple[WorkerId, ...], version: int, chunks: range) -> range:  # noqa: ARG002
        """All chunks are sent from here."""
        return chunks

    def leave(self, worker: WorkerId) -> None:
        """No shard knows the worker."""

    def load(self, version: int, parameters: Slab, state: OptimizerState | None) -> None:
        """Takes a version's place. `state` is None before the first step, and may be that of an earlier release.

        Raises ValueError if it does not fit.
        """
        if state is not None:
            state = optimizers.make(self.parameters.plan.optimizer).migrated(state)
        self._copies.before_change()
        self._restore(version, parameters, state)

    def _restore(self, version: int, parameters: Slab, state: OptimizerState | None) -> None:
        self.parameters.restore(version, parameters, state)

    def offer(self) -> None:
        """Lets the trajectory have the current version, if it wants it."""
        version = self.version
        if self.trajectory.wants(version):
            try:
                self.copy(lambda slabs: self.trajectory.add(version, slabs[PARAMETERS]), state=False)
            except MemoryError as error:
                # A picture less is no failure.
                self._telemetry.notice(f"the trajectory has no step {version:,}: there is too little memory for a copy ({error})")

    def copy(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        """Has the parameters, and the optimizer's state if that is wanted, copied as they are now: at once if they are small.

        Calls `then` with the slabs by name. Raises MemoryError if there is no room for them.
        """
        self._check_room(len(self._slabs(state)))
        self._copy(then, state)

    def _copy(self, then: Callable[[OptimizerState], object], state: bool) -> None:
        slabs: OptimizerState = {name: np.empty(slab.shape, slab.dtype) for name, slab in self._slabs(state).items()}
        self._copies.copy(slabs, lambda: then(slabs))

    def hand_over(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        """Calls `then` with the slabs themselves, when the copies of them are made that were asked for."""
        self._copies.after(lambda: then(self._slabs(state)))

    def _check_room(self, slabs: int) -> None:
        """Raises MemoryError if fewer bytes are available than some slabs take: the system would end the process instead."""
        need = slabs * self.parameters.plan.elements * self.parameters.dtype.itemsize
        if need >= _MIN_CHECKED and need > (available := resources.memory().available):
            raise MemoryError(f"{size_text(need)} are needed, but {size_text(available)} are available")

    def _slabs(self, state: bool) -> OptimizerState:
        return {name: slab for name, slab in self.parameters.slabs.items() if state or name == PARAMETERS}

    def needs(self, shard: ShardLink) -> bool:  # noqa: ARG002
        """No shard holds anything."""
        return False

    def close(self) -> None:
        """Nothing is needed any more: frees the arrays, except those that others still reference."""
        self._copies.drop()
        self.parameters.drop()
