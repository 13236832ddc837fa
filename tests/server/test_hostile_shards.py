"""Shards, and workers of shards, that are broken or hostile: their stream ends, and nothing else does."""

import hmac
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, Peer
from tests.end_to_end.refusals import Refusal, refusal
from tests.server.specs import make_spec
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.release import PROTOCOL, hello, release, shard_offer
from thalweg.server.process import Server
from thalweg.server.services.hosted import ServerStartError
from thalweg.server.sharding import process as shard_process
from thalweg.server.sharding.process import ShardConfig, ShardProcess
from thalweg.v1 import job_pb2, shard_service_pb2_grpc, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.v1 import shard_service_pb2 as shard_pb
from thalweg.workers.transport.streams import ShardStream

CHUNK_ELEMENTS = 1 << 18
PREPARED = pb.Prepared(
    layout=job_pb2.Layout(tensors=[job_pb2.Tensor(name="0.weight", shape=[2 * CHUNK_ELEMENTS])], dtype="float32"), train_samples=4
)
CHUNK = np.zeros(CHUNK_ELEMENTS, np.float32).tobytes()
SECRET = b"s" * 32


class Confirms(shard_service_pb2_grpc.ShardConfirmationServiceServicer):
    """What a shard answers that is called back."""

    def Confirm(self, request: shard_pb.ConfirmRequest, _: Any) -> shard_pb.ConfirmResponse:  # noqa: N802 - as gRPC calls it
        return shard_pb.ConfirmResponse(proof=hmac.digest(SECRET, request.challenge, "sha256"))


class ShardPeer:
    """A shard's stream, message by message."""

    def __init__(self, server: Address) -> None:
        self._channel = grpc.insecure_channel(str(server))
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stub = shard_service_pb2_grpc.ShardServiceStub(self._channel)
        self.call = stub.Hold(iter(self._outbox.get, None), timeout=DEADLINE)
        self._confirmation = grpc.server(ThreadPoolExecutor(1))
        shard_service_pb2_grpc.add_ShardConfirmationServiceServicer_to_server(Confirms(), self._confirmation)
        self.port = self._confirmation.add_insecure_port("127.0.0.1:0")
        self._confirmation.start()

    def __enter__(self) -> "ShardPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._outbox.put(None)
        self._confirmation.stop(None)

    def offer(self, address: str = "", secret: bytes = SECRET) -> None:
        """Offers itself, by default where it is reached."""
        self.send(shard_pb.HoldRequest(offer=shard_offer(address or f":{self.port}", secret)))

    def send(self, message: shard_pb.HoldRequest) -> None:
        self._outbox.put(message)

    def refusal(self) -> Refusal:
        """The error that ends the stream."""
        return refusal(lambda: self.call)

    def share(self) -> int:
        """The number of the share that it is to make next."""
        for response in self.call:
            for command in response.commands:
                if command.HasField("make"):
                    return int(command.share)
        raise AssertionError("the stream ended without a share")


@pytest.fixture
def shard(server: Server) -> Iterator[ShardProcess]:
    """A shard of the server that does not wait long for invitations."""
    shard = ShardProcess(ShardConfig(Address("127.0.0.1", 0), Endpoint(server.address), invitation_seconds=0.2))
    shard.start()
    wait_for(lambda: server.jobs.shards.attending)
    yield shard
    shard.stop()


def join(server: Server, peer: Peer) -> pb.Accepted:
    """Lets a peer work for a new job of two chunks."""
    with stub_of(server) as stub:
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec())).job
    peer.hello(job.id)
    return peer.prepare(PREPARED)


def gradient(**changes: Any) -> pb.WorkRequest:
    return pb.WorkRequest(gradient=pb.GradientChunk(**{"chunk": 0, "data": CHUNK, **changes}))


@contextmanager
def guest_of(shard: ShardProcess, token: bytes) -> Iterator[Peer]:
    """A worker at a shard that carries, and says, a token."""
    with Peer(shard.address, token.hex()) as guest:
        guest.send(pb.WorkRequest(hello=hello(token=token)))
        yield guest


@pytest.mark.parametrize("token", [b"", b"x" * 32, b"x" * 1000])
def test_workers_without_an_invitation_are_refused(token: bytes, server: Server, shard: ShardProcess) -> None:
    with Peer(server.address) as peer:
        (invitation,) = join(server, peer).shards
        with guest_of(shard, token) as guest:
            assert guest.refusal().reason == "UNAUTHENTICATED"
        # What is carried by the call is asked for before anything is read, and what is said as well.
        with Peer(shard.address) as guest:
            assert guest.refusal().reason == "UNAUTHENTICATED"
        with Peer(shard.address, invitation.token.hex()) as guest:
            guest.send(pb.WorkRequest(hello=hello(token=token)))
            assert guest.refusal().reason == "UNAUTHENTICATED"


def _unloaded(task: pb.DifferentiateTask) -> tuple[pb.ParametersChunk, pb.DifferentiateTask]:
    """The chunk that a task took along, and the task."""
    chunk = pb.ParametersChunk()
    chunk.CopyFrom(task.parameters)
    task.ClearField("parameters")
    return chunk, task


def test_an_invitation_is_for_one(server: Server, shard: ShardProcess) -> None:
    with Peer(server.address) as peer, ExitStack() as stack:
        (invitation,) = join(server, peer).shards
        guest = stack.enter_context(guest_of(shard, invitation.token))
        assert (invitation.address, invitation.first_chunk, invitation.end_chunk) == (str(shard.address), 0, 1)
        peer.receive("initialize")
        guest.send(pb.WorkRequest(initial=pb.ParametersChunk(data=CHUNK)))
        peer.send(pb.WorkRequest(initial=pb.ParametersChunk(chunk=1, data=CHUNK)))
        (own, task), (other_own, other_task) = (_unloaded(each.receive("differentiate")) for each in (guest, peer))
        assert (own.chunk, other_own.chunk) == (0, 1)
        assert task == other_task
        with guest_of(shard, invitation.token) as other:
            assert other.refusal().reason == "UNAUTHENTICATED"


SENSELESS: dict[str, pb.WorkRequest] = {
    "too few bytes": gradient(data=CHUNK[:-4]),
    "half a number": gradient(data=CHUNK[:-1]),
    "too many bytes": gradient(data=CHUNK + bytes(4)),
    "a chunk of the server": gradient(chunk=1),
    "a chunk of nobody": gradient(chunk=2),
    "sums": gradient(sums=pb.Sums(loss=1, samples=4)),
    "initial parameters of the server": pb.WorkRequest(initial=pb.ParametersChunk(chunk=1, data=CHUNK)),
    "shared memory": pb.WorkRequest(shared_gradient=pb.SharedGradient(end_chunk=1)),
    "an evaluation": pb.WorkRequest(evaluation=pb.Evaluation()),
    "a heartbeat": pb.WorkRequest(heartbeat=pb.Heartbeat()),
    "a failure": pb.WorkRequest(failure=pb.Failure(problem="x")),
    "another hello": pb.WorkRequest(hello=pb.Hello()),
    "nothing": pb.WorkRequest(),
}


@pytest.mark.parametrize("what", SENSELESS)
def test_workers_that_make_no_sense_are_refused(what: str, server: Server, shard: ShardProcess) -> None:
    with Peer(server.address) as peer, ExitStack() as stack:
        (invitation,) = join(server, peer).shards
        guest = stack.enter_context(guest_of(shard, invitation.token))
        guest.send(SENSELESS[what])
        assert guest.refusal().reason == "PROTOCOL_VIOLATION"
    assert server.jobs.shards.attending
    assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


def test_what_nobody_asked_for_is_not_kept(server: Server, shard: ShardProcess) -> None:
    with Peer(server.address) as peer, ExitStack() as stack:
        (invitation,) = join(server, peer).shards
        guest = stack.enter_context(guest_of(shard, invitation.token))
        for step in range(20):
            guest.send(gradient(step=step))
        with stub_of(server) as stub:
            job_id = stub.ListJobs(training_service_pb2.ListJobsRequest()).jobs[0].id
            request = training_service_pb2.GetJobRequest(job_id=job_id)
            wait_for(lambda: stub.GetJob(request).job.progress.contributions.unknown == 20)
        wait_for(lambda: shard.kept == 0)


HOSTILE: dict[str, list[Callable[[int], shard_pb.HoldRequest]]] = {
    "no offer": [lambda _: shard_pb.HoldRequest(heartbeat=pb.Heartbeat())],
    "no port": [lambda _: shard_pb.HoldRequest(offer=shard_offer(":x", SECRET))],
    "an address that is none": [lambda _: shard_pb.HoldRequest(offer=shard_offer("unix:/x", SECRET))],
    "no secret": [lambda _: shard_pb.HoldRequest(offer=shard_offer(":1", b""))],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_shards_that_make_no_sense_are_refused(what: str, server: Server) -> None:
    with ShardPeer(server.address) as peer:
        for message in HOSTILE[what]:
            peer.send(message(0))
        assert peer.refusal().reason == "PROTOCOL_VIOLATION"
    assert server.jobs.shards.attending == []


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1])
def test_a_shard_of_another_protocol_is_refused_with_both_named(server: Server, protocol: int) -> None:
    """Before anything else of its offer is looked at."""
    offer = shard_offer(":x", b"")
    offer.protocol, offer.release = protocol, "9.9"
    with ShardPeer(server.address) as peer:
        peer.send(shard_pb.HoldRequest(offer=offer))
        refused = peer.refusal()
    assert refused.reason == "INCOMPATIBLE"
    both = f"speaks protocol {protocol} (Thalweg 9.9), and the server speaks protocol {PROTOCOL} (Thalweg {release()})"
    assert f"this shard {both}" in refused.message
    assert server.jobs.shards.attending == []


def test_a_shard_that_is_refused_says_why_and_that_it_tries_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def of_another_release(address: str, secret: bytes, tls_name: str) -> shard_pb.ShardOffer:
        offer = shard_offer(address, secret, tls_name)
        offer.protocol += 1
        return offer

    monkeypatch.setattr(shard_process, "shard_offer", of_another_release)
    shard = ShardProcess(ShardConfig(Address("127.0.0.1", 0), Endpoint(server.address)))
    shard.start()
    try:
        wait_for(lambda: "refuses this shard: this shard speaks protocol" in caplog.text)
        assert server.jobs.shards.attending == []
    finally:
        shard.stop()


def test_a_shard_that_cannot_do_what_it_is_told_fails_the_job(server: Server) -> None:
    with ShardPeer(server.address) as shard, Peer(server.address) as peer:
        shard.offer()
        wait_for(lambda: server.jobs.shards.attending)
        join(server, peer)
        piece = shard_pb.Piece(copy=1, slab="parameters", chunk=1, data=CHUNK)
        share = shard.share()
        # Copies and shares that there are not may have been given up.
        shard.send(shard_pb.HoldRequest(share=share, copied=piece))
        shard.send(shard_pb.HoldRequest(share=share + 1, copied=piece))
        shard.send(shard_pb.HoldRequest(share=share, failure=pb.Failure(problem="out of order")))
        assert peer.receive("goodbye").reason == "the job ended: FAILED"


UNASKED: dict[str, shard_pb.HoldRequest] = {
    "an update that was not asked for": shard_pb.HoldRequest(applied=shard_pb.Applied(version=0, finite=False)),
    "sums of a reduction that was not asked for": shard_pb.HoldRequest(block_sums=shard_pb.BlockSums(values=[1.0])),
}


@pytest.mark.parametrize("what", UNASKED)
def test_a_shard_that_answers_what_nobody_asked_is_refused(what: str, server: Server) -> None:
    with ShardPeer(server.address) as shard, Peer(server.address) as peer:
        shard.offer()
        wait_for(lambda: server.jobs.shards.attending)
        join(server, peer)
        answer = shard_pb.HoldRequest(share=shard.share())
        answer.MergeFrom(UNASKED[what])
        shard.send(answer)
        refused = shard.refusal()
        assert (refused.reason, server.jobs.shards.attending) == ("PROTOCOL_VIOLATION", [])
        assert what in refused.message
    assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_silent_shard_is_taken_for_lost(tmp_path: Path) -> None:
    with running_server(tmp_path, silence_seconds=0.5) as server, ShardPeer(server.address) as peer:
        peer.offer()
        wait_for(lambda: [shard.address for shard in server.jobs.shards.attending] == [f"127.0.0.1:{peer.port}"])
        assert peer.refusal().reason == "EVICTED"
        assert server.jobs.shards.attending == []


def test_a_shard_needs_the_token(tmp_path: Path) -> None:
    with running_server(tmp_path, token="secret") as server:
        with ShardPeer(server.address) as peer:
            peer.offer()
            assert peer.refusal().reason == "UNAUTHENTICATED"
        shard = ShardProcess(ShardConfig(Address("127.0.0.1", 0), Endpoint(server.address, "secret")))
        shard.start()
        wait_for(lambda: server.jobs.shards.attending)
        with Peer(shard.address) as guest:
            assert guest.refusal().reason == "UNAUTHENTICATED"
        shard.stop()


UNREACHABLE = {"nobody": "127.0.0.1:1", "another process": "", "no shard": "server"}


@pytest.mark.parametrize("who", UNREACHABLE)
def test_a_shard_that_is_not_reached_where_it_says_is_refused(who: str, server: Server) -> None:
    address = str(server.address) if who == "no shard" else UNREACHABLE[who]
    with ShardPeer(server.address) as peer:
        # Another process answers by its own secret.
        peer.offer(address, b"t" * 32 if who == "another process" else SECRET)
        refused = peer.refusal()
        assert refused.reason == "SHARD_UNREACHABLE"
        assert (address or f"127.0.0.1:{peer.port}") in refused.message
        assert server.jobs.shards.attending == []


def test_workers_show_a_shard_nothing_but_their_invitations(tmp_path: Path) -> None:
    seen: list[str] = []

    class Listener(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            seen.append(dict(details.invocation_metadata).get("authorization", ""))

    listener = grpc.server(ThreadPoolExecutor(1))
    listener.add_generic_rpc_handlers((Listener(),))
    port = listener.add_insecure_port("127.0.0.1:0")
    listener.start()
    with ShardStream(pb.ShardRange(address=f"127.0.0.1:{port}", token=b"t" * 32), lambda _: None):
        wait_for(lambda: seen)
    listener.stop(None)
    assert seen == [f"Bearer {(b't' * 32).hex()}"]


def test_a_shard_is_not_exposed_without_a_token() -> None:
    with pytest.raises(ServerStartError, match="needs a token"):
        ShardProcess(ShardConfig(Address("0.0.0.0", 0), Endpoint(Address("127.0.0.1", 1)))).start()
