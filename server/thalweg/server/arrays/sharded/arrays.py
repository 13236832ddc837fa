"""The arrays of a job with shards: decisions about a shard's chunks are sent to it, and its answers are handled here."""

import itertools
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from thalweg.contract.errors import protocol_violation
from thalweg.contract.layout import Slab, tensors_of
from thalweg.contract.text import MAX_PROBLEM, visible
from thalweg.contract.tree import Node
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.copies import Spare
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.parameters import PARAMETERS, Parameters
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.arrays.sharded.assembly import Assembly
from thalweg.server.arrays.sharded.in_order import InOrder
from thalweg.server.arrays.sharded.ranges import Held, RemoteRange
from thalweg.server.arrays.sharded.registry import ShardLink, ShardRegistry, split
from thalweg.server.deciding.decision_queue import DecisionQueue
from thalweg.server.deciding.decisions import Decision, Promote
from thalweg.server.deciding.events import ContributionReceived, DriverFailed, Event, InitialReceived, RangeNotFinite
from thalweg.server.deciding.payload import Payload
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import WorkerId
from thalweg.server.telemetry import Telemetry
from thalweg.v1 import parameter_service_pb2
from thalweg.v1 import shard_service_pb2 as pb

_TOKEN_BYTES = 32


class ShardedArrays(LocalArrays):
    """See `Arrays`. The last range, with the chunk that brings the sums, is here; the others are at shards, which hear of all
    that is decided about their chunks, in order.
    """

    def __init__(
        self,
        plan: Plan,
        shards: list[ShardLink],
        all_shards: ShardRegistry,
        queue: DecisionQueue,
        telemetry: Telemetry,
        crew: ArithmeticPool | None,
        spare: Spare,
    ) -> None:
        *ranges, own = split(plan.chunks, len(shards) + 1)
        super().__init__(Parameters(plan, crew=crew, chunks=own), telemetry, spare, queue.fail)
        self._plan = plan
        self._queue = queue
        self._exchange = telemetry.exchange
        self._shares = [RemoteRange(shard, all_shards.number(), part) for shard, part in zip(shards, ranges, strict=True)]
        self._in_order = InOrder(plan.sent)
        self._applying = 0
        # The reduction that is under way, and the part of its sums that is computed here.
        self._reducing: tuple[int, list[float]] | None = None
        self._assembly = Assembly(self.parameters)
        for share in self._shares:
            share.shard.begin(share.number, lambda message, share=share: self._hear(share, message))  # type: ignore[misc]
            make = pb.MakeShare(spec=plan.spec, elements=plan.elements, train_samples=plan.samples)
            make.tensors.extend(tensors_of(plan.segments))
            make.first_chunk, make.end_chunk = share.chunks.start, share.chunks.stop
            share.send(make=make)

    @property
    def addresses(self) -> list[str]:
        """Where the shards are."""
        return [share.shard.address for share in self._shares]

    def needs(self, shard: ShardLink) -> bool:
        """Whether a shard holds a part that has not come back."""
        return any(share.shard is shard for share in self._shares)

    def close(self) -> None:
        """Nothing is needed any more: frees the arrays, here and at shards. Copies that have not come do not come any more."""
        for share in self._shares:
            share.shard.end(share.number)
        self._shares = []
        self._assembly.clear()
        super().close()

    def invite(self, worker: WorkerId) -> list[parameter_service_pb2.ShardRange]:
        """Lets a worker come to the shards, and says how."""
        ranges: list[parameter_service_pb2.ShardRange] = []
        for share in self._shares:
            token = secrets.token_bytes(_TOKEN_BYTES)
            share.send(invite=pb.Invite(worker=worker, token=token))
            shard, chunks = share.shard, share.chunks
            reached = parameter_service_pb2.ShardRange(address=shard.address, token=token, tls_name=shard.tls_name)
            reached.first_chunk, reached.end_chunk = chunks.start, chunks.stop
            ranges.append(reached)
        return ranges

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone."""
        for share in self._shares:
            share.send(dismiss=pb.Dismiss(worker=worker))
        self._let_go(self._in_order.leave(worker))

    def _let_go(self, held_back: list[Event]) -> None:
        """Has what was held back for nothing dropped, and so counted."""
        for event in held_back:
            self._queue.handle(event)

    def _restore(self, version: int, parameters: Slab, state: OptimizerState | None) -> None:
        own = slice(self._plan.chunk_range(self.parameters.chunks.start).start, None)
        if parameters.shape != (self._plan.elements,):
            raise ValueError("the checkpoint is of another model")
        own_state = None if state is None else {name: slab[own] for name, slab in state.items()}
        super()._restore(version, parameters[own], own_state)
        for name, slab in ({PARAMETERS: parameters} | (state or {})).items():
            for share in self._shares:
                for chunk in share.chunks:
                    piece = pb.Piece(slab=name, chunk=chunk, data=slab[self._plan.chunk_range(chunk)].tobytes())
                    share.send(load=pb.LoadShare(version=version, piece=piece))

    def hand_over(self, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        """Calls `then` with copies: the shards' parts have to come."""

        def handed_over(slabs: OptimizerState) -> None:
            self._let_go(self._in_order.end())
            then(slabs)

        self._copy(handed_over, state)

    def _copy(self, then: Callable[[OptimizerState], object], state: bool) -> None:
        number, own = self._assembly.begin(list(self._slabs(state)), then)
        for share in self._shares:
            share.send(copy=pb.CopyShare(copy=number, state=state))
        self._copies.copy(own, lambda: self._assembly.add_own(number))

    def ready(self, decision: Decision) -> bool:
        """Whether nothing has to be answered before a decision is carried out."""
        return self._reducing is None and not (isinstance(decision, Promote) and self._applying)

    def decided(self, event: Event, decisions: list[Decision]) -> None:
        """Has a shard drop a payload that came with an event and that no decision uses."""
        held = getattr(event, "payload", None)
        if isinstance(held, Held) and not any(getattr(decision, "payload", None) is held for decision in decisions):
            held.share.send(forget=pb.Forget(kept=held.number))

    def _keep(self, step: int, node: Node, chunks: range, payload: Payload) -> None:
        if isinstance(payload, Held):
            keep = pb.KeepShare(step=step, level=node.level, index=node.index, chunk=chunks.start, kept=payload.number)
            payload.share.send(keep=keep)
        else:
            super()._keep(step, node, chunks, payload)

    def _keep_initial(self, chunk: int, payload: Payload) -> None:
        if isinstance(payload, Held):
            payload.share.send(keep_initial=pb.KeepInitialShare(chunk=chunk, kept=payload.number))
        else:
            super()._keep_initial(chunk, payload)

    def _merge(self, step: int, parent: Node, chunks: range) -> None:
        for share, part in self._parts(chunks):
            share.send(merge=pb.MergeShare(step=step, level=parent.level, index=parent.index, **part))
        super()._merge(step, parent, self._own(chunks))

    def _apply(self, version: int, step: int, chunks: range, factor: float) -> Event | None:
        for share, part in self._parts(chunks):
            self._applying += 1
            share.send(apply=pb.ApplyShare(version=version, step=step, schedule_factor=factor, **part))
        own = self._own(chunks)
        return super()._apply(version, step, own, factor) if own else None

    def _reduce(self, version: int, step: int, reduction: int) -> None:
        self._send_all(reduce=pb.ReduceShare(version=version, step=step, reduction=reduction))
        self._reducing = reduction, self.parameters.block_sums(version, step, reduction)

    def _promote(self, version: int, step: int) -> None:
        self._send_all(promote=pb.PromoteShare(version=version, step=step))
        super()._promote(version, step)

    def announce(self, worker: WorkerId, task: parameter_service_pb2.WorkResponse) -> None:
        """Has shards send a worker a task, after the parameters that it is for. It comes from here as well."""
        self._send_all(tell=pb.TellTask(worker=worker, task=task))

    def send(self, workers: tuple[WorkerId, ...], version: int, chunks: range) -> range:
        """Has shards send workers their parts of some chunks. The chunks that are left are to be sent from here."""
        for share, part in self._parts(chunks):
            share.send(send=pb.SendShare(workers=workers, version=version, **part))
            start, end = (self._plan.chunk_range(part[name]).start for name in ("first_chunk", "end_chunk"))
            self._exchange.parameter_bytes += self.parameters.outgoing.size(start, end - start) * len(workers)
        return self._own(chunks)

    def in_turn(self, event: Event) -> list[Event]:
        """The events whose turn it is, with another one that came from a worker."""
        return self._in_order(event)

    def _send_all(self, **command: Any) -> None:
        for share in self._shares:
            share.send(**command)

    def _parts(self, chunks: range) -> Iterator[tuple[RemoteRange, dict[str, int]]]:
        """Who has which of some chunks, as fields of a command."""
        for share in self._shares:
            first, end = max(chunks.start, share.chunks.start), min(chunks.stop, share.chunks.stop)
            if first < end:
                yield share, {"first_chunk": first, "end_chunk": end}

    def _own(self, chunks: range) -> range:
        """Those of some chunks that are the server's own."""
        return range(max(chunks.start, self.parameters.chunks.start), chunks.stop)

    def _hear(self, share: RemoteRange, message: pb.HoldRequest) -> None:
        match message.WhichOneof("message"):
            case "arrival":
                self._arrived(share, message.arrival)
            case "applied":
                if not self._applying:
                    raise protocol_violation("an update that was not asked for")
                self._applying -= 1
                if not message.applied.finite:
                    self._queue.interrupt(RangeNotFinite(message.applied.version))
                else:
                    self._queue.go_on()
            case "block_sums":
                if self._reducing is None or share.sums is not None:
                    raise protocol_violation("sums of a reduction that was not asked for")
                share.sums = list(message.block_sums.values)
                self._fold()
            case "copied":
                self._assembly.add(message.copied, share.chunks)
            case "failure":
                self.broken = True
                problem = visible(message.failure.problem, MAX_PROBLEM)
                self._queue.interrupt(DriverFailed(f"shard {share.shard.address}: {problem}"))

    def _arrived(self, share: RemoteRange, arrival: pb.Arrival) -> None:
        worker = arrival.worker
        if arrival.HasField("initial"):
            self._queue.handle(InitialReceived(worker, arrival.initial.chunk, Held(share, arrival.kept)))
            return
        gradient = arrival.gradient
        self._exchange.gradient_bytes += arrival.bytes
        held = Held(share, arrival.kept, gradient.residual_since)
        node, chunks = Node(gradient.level, gradient.index), range(gradient.chunk, gradient.chunk + 1)
        for event in self._in_order(ContributionReceived(worker, gradient.version, gradient.step, node, chunks, None, held)):
            self._queue.handle(event)

    def _fold(self) -> None:
        """When all parts of a reduction have come, it can scale the updates."""
        known = [share.sums for share in self._shares if share.sums is not None]
        if self._reducing is None or len(known) < len(self._shares):
            return
        reduction, own = self._reducing
        try:
            factors = self.parameters.factors(reduction, itertools.chain(*known, own))
        except ValueError as error:
            raise protocol_violation(str(error)) from error
        self._reducing = None
        for share in self._shares:
            share.sums = None
            share.send(scale=pb.ScaleShare(reduction=reduction, factors=factors))
        self.parameters.scale(reduction, factors)
        self._queue.go_on()
