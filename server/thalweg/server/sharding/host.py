"""A shard: holds ranges of jobs' slabs, lets workers in, and does what the server says, in order. It decides nothing."""

import asyncio
import hmac
import itertools
import logging
from collections.abc import Callable
from typing import Any

from thalweg.contract.errors import ThalwegError, protocol_violation
from thalweg.contract.frames import Parcel
from thalweg.contract.layout import segments_of
from thalweg.contract.release import check_protocol
from thalweg.contract.text import MAX_PROBLEM, visible
from thalweg.contract.tree import Node
from thalweg.server.arrays import budget
from thalweg.server.arrays.budget import Budget, OverBudgetError
from thalweg.server.arrays.compilation import KernelCompiler
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.pieces import Piece, Pieces
from thalweg.server.deciding.events import ContributionReceived, InitialReceived
from thalweg.server.deciding.payload import Payload
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts
from thalweg.server.services.parameter import WorkerStream, Workplace
from thalweg.server.streams import wire
from thalweg.server.streams.connections import broadcast
from thalweg.server.streams.job_sharing import JobSharing
from thalweg.v1 import parameter_service_pb2
from thalweg.v1 import shard_service_pb2 as pb

_log = logging.getLogger(__name__)
# A worker may come before the word that it was invited.
INVITATION_SECONDS = 5.0
# No honest fleet has as many workers that come uninvited.
_MAX_CALLERS = 256


class _Guest:
    """A worker that was invited. `stream` takes what is sent to it, also before it has come."""

    def __init__(self, invitation: pb.Invite) -> None:
        self.token = invitation.token
        self.stream = WorkerStream(invitation.worker, "")
        self.come = False


class _Share:
    """A range of one job's slab. `say` takes what the server is to hear of it."""

    def __init__(self, number: int, plan: Plan, chunks: range, say: Callable[[pb.HoldRequest | Piece], None]) -> None:
        self.number = number
        self.parameters = Parameters(plan, chunks=chunks)
        self.guests: dict[int, _Guest] = {}
        self._plan = plan
        self._say = say
        self._sharing = JobSharing(None, plan.spec)
        self.kept: dict[int, Payload] = {}
        self._numbers = itertools.count(1)
        self._pieces = Pieces(number, self.parameters)

    def join(self, stream: WorkerStream) -> None:
        """A worker that was invited has come."""

    def leave(self, worker: int) -> None:
        """A worker's stream has ended. The server, where it has another one, knows what that means."""
        self.guests.pop(worker, None)

    def receive(self, worker: int, request: Parcel[parameter_service_pb2.WorkRequest]) -> None:
        """Keeps a chunk, and announces it. Raises ThalwegError if it does not belong to this share."""
        event = wire.event_of(worker, request, self.parameters, self._sharing)
        arrival = pb.Arrival(worker=worker, kept=next(self._numbers), bytes=len(request.data))
        match event:
            case ContributionReceived():
                arrival.gradient.CopyFrom(request.message.gradient)
            case InitialReceived():
                arrival.initial.CopyFrom(request.message.initial)
            case _:
                raise protocol_violation("a shard accepts chunks only")
        self.kept[arrival.kept] = event.payload
        self._tell(arrival=arrival)

    def _tell(self, **message: Any) -> None:
        self._say(pb.HoldRequest(share=self.number, **message))

    def do(self, command: pb.ShareCommand) -> None:
        """Does what the server says."""
        parameters = self.parameters
        match command.WhichOneof("command"):
            case "invite":
                self.guests[command.invite.worker] = _Guest(command.invite)
            case "dismiss":
                guest = self.guests.pop(command.dismiss.worker, None)
                if guest:
                    guest.stream.evict()
            case "tell":
                guest = self.guests.get(command.tell.worker)
                if guest:
                    guest.stream.send(command.tell.task)
            case "keep_initial":
                self._pieces.before_change()
                chunk, kept = command.keep_initial.chunk, self.kept.pop(command.keep_initial.kept)
                parameters.keep_initial(chunk, kept.chunk(self._plan, chunk))
            case "load":
                self._pieces.before_change()
                self._load(command.load)
            case "keep":
                keep = command.keep
                values = self.kept.pop(keep.kept).chunk(self._plan, keep.chunk)
                parameters.keep(keep.step, Node(keep.level, keep.index), keep.chunk, values)
            case "forget":
                del self.kept[command.forget.kept]
            case "merge":
                merge = command.merge
                for chunk in range(merge.first_chunk, merge.end_chunk):
                    parameters.merge(merge.step, Node(merge.level, merge.index), chunk)
            case "reduce":
                reduce = command.reduce
                sums = parameters.block_sums(reduce.version, reduce.step, reduce.reduction)
                self._tell(block_sums=pb.BlockSums(values=sums))
            case "scale":
                parameters.scale(command.scale.reduction, command.scale.factors)
            case "apply":
                apply = command.apply
                chunks = range(apply.first_chunk, apply.end_chunk)
                self._pieces.before_update(apply.version, chunks)
                finite = parameters.apply(apply.version, apply.step, chunks, apply.schedule_factor)
                self._tell(applied=pb.Applied(version=apply.version, finite=finite))
            case "send":
                self._send(command.send)
            case "promote":
                parameters.promote(command.promote.version, command.promote.step)
            case "copy":
                # They are copied one by one, when there is nothing more urgent to be sent.
                for piece in self._pieces.copy(command.copy.copy, command.copy.state):
                    self._say(piece)

    def _load(self, load: pb.LoadShare) -> None:
        self.parameters.load(load.version, load.piece.slab, load.piece.chunk, load.piece.data)

    def _send(self, send: pb.SendShare) -> None:
        streams = [self.guests[worker].stream for worker in send.workers if worker in self.guests]
        broadcast(self.parameters, streams, send.version, range(send.first_chunk, send.end_chunk))

    def end(self) -> None:
        """The share is dropped."""
        goodbye = parameter_service_pb2.Goodbye(reason="the shard is done with the job")
        for guest in self.guests.values():
            guest.stream.send(parameter_service_pb2.WorkResponse(goodbye=goodbye))


class ShardHost:
    """All shares of one shard, for as long as it is taken on by a server. Belongs to an event loop."""

    def __init__(self, say: Callable[[pb.HoldRequest | Piece], None], invitation_seconds: float = INVITATION_SECONDS) -> None:
        self._say = say
        self._invitation_seconds = invitation_seconds
        self._shares: dict[int, _Share] = {}
        self._budget = Budget()
        self._kernels = KernelCompiler(self._budget)
        self._callers = 0
        self._invited = asyncio.Event()
        # Whether a server has taken the shard on.
        self.attached = False

    def do(self, command: pb.ShareCommand) -> None:
        """Executes a command of the server. A command that fails is reported, and the share is dropped."""
        share = self._shares.get(command.share)
        try:
            if command.HasField("make"):
                self._shares[command.share] = self._make(command.share, command.make)
            elif command.HasField("drop"):
                self._drop(command.share)
            elif share:
                share.do(command)
        except Exception as error:  # noqa: BLE001 - half done, whatever it was: the job fails
            _log.exception("share %d: a command could not be carried out", command.share)
            problem = visible(f"{type(error).__name__}: {error}", MAX_PROBLEM)
            self._say(pb.HoldRequest(share=command.share, failure=parameter_service_pb2.Failure(problem=problem)))
            self._drop(command.share)
        if command.HasField("invite"):
            self._invited.set()
            self._invited = asyncio.Event()

    def _make(self, number: int, make: pb.MakeShare) -> _Share:
        plan = Plan(make.spec, Facts(make.elements, make.train_samples, 0, (), segments_of(make.tensors)))
        lack = self._budget.reserve(number, budget.of_shard(plan, make.end_chunk - make.first_chunk))
        if lack:
            raise OverBudgetError(lack)
        self._kernels.prepare(plan)
        return _Share(number, plan, range(make.first_chunk, make.end_chunk), self._say)

    def _drop(self, number: int) -> None:
        self._budget.release(number)
        share = self._shares.pop(number, None)
        if share:
            share.end()

    @property
    def shares(self) -> int:
        """How many jobs have a range of their slab here."""
        return len(self._shares)

    @property
    def guests(self) -> int:
        """How many streams workers have opened here."""
        return sum(guest.come for share in self._shares.values() for guest in share.guests.values())

    @property
    def kept(self) -> int:
        """How many chunks wait for the server's word what becomes of them."""
        return sum(len(share.kept) for share in self._shares.values())

    def clear(self) -> None:
        """The server is gone, and with it whatever was begun."""
        self.attached = False
        for number in list(self._shares):
            self._drop(number)

    def close(self) -> None:
        """Ends what the shares have in common."""
        self.clear()
        self._kernels.close()

    async def expects(self, bearer: str) -> bool:
        """Whether a stream that carries a token is that of a worker that was invited, or that soon turns out to be."""
        if self._callers >= _MAX_CALLERS:
            return False
        self._callers += 1
        try:
            await asyncio.wait_for(self._await_invitation(bytes.fromhex(bearer)), self._invitation_seconds)
        except (TimeoutError, ValueError):
            return False
        finally:
            self._callers -= 1
        return True

    async def _await_invitation(self, token: bytes) -> None:
        while not self._invited_with(token):
            await self._invited.wait()

    def _invited_with(self, token: bytes) -> tuple[_Share, _Guest] | None:
        """The worker that was invited with a token and has not come, and where to."""
        for share in self._shares.values():
            for guest in share.guests.values():
                if not guest.come and hmac.compare_digest(guest.token, token):
                    return share, guest
        return None

    async def admit(self, hello: parameter_service_pb2.Hello) -> tuple[Workplace, WorkerStream] | str:
        """The share to which a worker was invited. Raises ThalwegError if it was not."""
        check_protocol("worker", hello.protocol, hello.release)
        found = self._invited_with(hello.token)
        if found is None:
            raise ThalwegError("UNAUTHENTICATED")
        share, guest = found
        guest.come = True
        return share, guest.stream
