"""Peers that are broken or hostile: their stream ends, and nothing else does."""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.peer import Peer
from tests.end_to_end.refusals import refusal
from tests.server.test_training_service import LAYOUT, PREPARED, make_spec
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.release import capacity, hello
from thalweg.server.process import Server
from thalweg.v1 import fleet_service_pb2, fleet_service_pb2_grpc, job_pb2, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

MAX = (1 << 64) - 1
INITIAL = np.array([1, 2, 3], np.float32)
SUMS = pb.Sums(loss=1, samples=4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a job that no peer disturbed."""
    with running_server(tmp_path_factory.mktemp("undisturbed")) as server:
        return train(server, make_spec()).result.weights_sha256


def create(stub: TrainingServiceStub) -> str:
    return stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec())).job.id


def state_of(stub: TrainingServiceStub, job_id: str) -> str:
    job = stub.GetJob(training_service_pb2.GetJobRequest(job_id=job_id)).job
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")


def prepared(**changes: Any) -> pb.WorkRequest:
    message = pb.Prepared()
    message.CopyFrom(PREPARED)
    message.MergeFrom(pb.Prepared(**changes))
    return pb.WorkRequest(prepared=message)


def layout(
    *shape: int,
    names: tuple[str, ...] = ("a",),
    dtype: str = "float32",
    kinds: tuple[int, ...] = (),
    counters: Sequence[job_pb2.Tensor] = (),
    aliases: Mapping[str, str] = MappingProxyType({}),
    fixed: Sequence[job_pb2.Fixed] = (),
    order: Sequence[int] = (),
) -> pb.WorkRequest:
    tensors = [job_pb2.Tensor(name=name, shape=shape) for name in names]
    for tensor, kind in zip(tensors, kinds, strict=False):
        tensor.kind = kind  # type: ignore[assignment]
    made = job_pb2.Layout(tensors=tensors, dtype=dtype, counters=counters, fixed=fixed, order=order)
    made.aliases.extend(job_pb2.Alias(name=name, tensor=tensor) for name, tensor in aliases.items())
    return pb.WorkRequest(prepared=pb.Prepared(layout=made, train_samples=4))


def gradient(**changes: Any) -> pb.WorkRequest:
    fields = {"version": 0, "level": 0, "index": 0, "chunk": 0, "data": INITIAL.tobytes(), "sums": SUMS, **changes}
    return pb.WorkRequest(gradient=pb.GradientChunk(**fields))


# What is said after hello.
UNPREPARED: dict[str, pb.WorkRequest | bytes] = {
    "hello again": pb.WorkRequest(hello=hello(job_id="job-1")),
    "an empty message": pb.WorkRequest(),
    "a message of the future": b"\xfa\x3f\x01x",
    "a gradient": gradient(),
    "initial parameters": pb.WorkRequest(initial=pb.ParametersChunk(data=INITIAL.tobytes())),
    "no samples": pb.WorkRequest(prepared=pb.Prepared(layout=LAYOUT)),
    "too many samples": prepared(train_samples=MAX),
    "too many validation samples": prepared(validation_samples=MAX),
    "a layout of another dtype": layout(3, dtype="float64"),
    "a layout of an unknown dtype": layout(3, dtype="complex"),
    "no deviations": prepared(preprocessing=job_pb2.Preprocessing(mean=[1, 2])),
    "too few means": prepared(preprocessing=job_pb2.Preprocessing(shape=[3], mean=[1, 2], scale=[1, 2])),
    "too many names": prepared(preprocessing=job_pb2.Preprocessing(shape=[1], columns=["a", "b"])),
    "samples of many axes": prepared(preprocessing=job_pb2.Preprocessing(shape=[1] * 100)),
    "samples of an unknown type": prepared(preprocessing=job_pb2.Preprocessing(dtype="complex64")),
    "too many metrics": prepared(metrics=[f"m{number}" for number in range(1000)]),
    "a metric without a name": prepared(metrics=[""]),
    "a metric's name that acts on a terminal": prepared(metrics=["\x1b[2J"]),
    "no layout": pb.WorkRequest(prepared=pb.Prepared(train_samples=4)),
    "too many axes": layout(*[2] * 1_000_000),
    "too many tensors": layout(1, names=tuple(map(str, range(100_000)))),
    "tensors of one name": layout(1, names=("a", "a")),
    "too many premises": prepared(premises=[pb.Premise(name=str(number)) for number in range(17)]),
    "premises of one name": prepared(premises=[pb.Premise(name="NumPy"), pb.Premise(name="NumPy")]),
    "a premise's name that is long": prepared(premises=[pb.Premise(name="a" * 41)]),
    "a premise's value that is long": prepared(premises=[pb.Premise(name="NumPy", value="1" * 201)]),
    "a tensor's name that acts on a terminal": layout(1, names=("\x1b[2J",)),
    "a tensor of an unknown kind": layout(1, kinds=(77,)),
    "a parameter after a statistic": layout(1, names=("a", "b"), kinds=(job_pb2.Tensor.KIND_STATISTIC, 0)),
    "a statistic after a constant": layout(
        1, names=("a", "b"), kinds=(job_pb2.Tensor.KIND_CONSTANT, job_pb2.Tensor.KIND_STATISTIC)
    ),
    "a counter of a tensor's name": layout(3, counters=[job_pb2.Tensor(name="a")]),
    "a counter that acts on a terminal": layout(3, counters=[job_pb2.Tensor(name="\x1b[2J")]),
    "a counter of too many elements": layout(3, counters=[job_pb2.Tensor(name="b", shape=[1 << 40])]),
    "a counter of a kind": layout(3, counters=[job_pb2.Tensor(name="b", kind=job_pb2.Tensor.KIND_CONSTANT)]),
    "a further name of nothing": layout(3, aliases={"b": "c"}),
    "a further name of itself": layout(3, aliases={"b": "b"}),
    "a further name of a further name": layout(3, aliases={"b": "a", "c": "b"}),
    "a further name that is a tensor's": layout(3, aliases={"a": "a"}),
    "a further name that acts on a terminal": layout(3, aliases={"\x1b[2J": "a"}),
    "too many further names": layout(3, aliases={str(number): "a" for number in range(100_000)}),
    "fixed tensors that are too large": layout(
        3, fixed=[job_pb2.Fixed(name=name, dtype="int8", shape=[600_000], data=bytes(600_000)) for name in ("b", "c")]
    ),
    "a fixed tensor of another size": layout(3, fixed=[job_pb2.Fixed(name="b", dtype="int8", shape=[1 << 40], data=b"1")]),
    "a fixed tensor of an unknown type": layout(3, fixed=[job_pb2.Fixed(name="b", dtype="object", shape=[1], data=b"12345678")]),
    "an order without each name": layout(3, names=("a", "b"), order=(1, 1)),
    "an order of other names": layout(3, order=(0, 1 << 31)),
    "a fixed tensor of a tensor's name": layout(3, fixed=[job_pb2.Fixed(name="a", dtype="int8", shape=[1], data=b"1")]),
}

# Messages in the middle of a step.
PREPARED_ALREADY = {
    "a chunk that does not exist": gradient(chunk=1, sums=None),
    "the greatest chunk": gradient(chunk=(1 << 32) - 1, sums=None),
    "too few bytes": gradient(data=INITIAL.tobytes()[:-1]),
    "too many bytes": gradient(data=INITIAL.tobytes() + b"\0"),
    "no bytes": gradient(data=b""),
    "two MiB": gradient(data=bytes(2 << 20)),
    "no sums": gradient(sums=None),
    "initial bytes too many": pb.WorkRequest(initial=pb.ParametersChunk(data=bytes(16))),
    "an initial chunk that does not exist": pb.WorkRequest(initial=pb.ParametersChunk(chunk=9, data=INITIAL.tobytes())),
    "another layout": layout(1, 2),
    "an evaluation of other metrics": pb.WorkRequest(evaluation=pb.Evaluation(sums=pb.Sums(loss=1, metrics=[1, 2]))),
}

# What makes sense to nobody, yet is only late or unknown: it is dropped.
DROPPED = {
    "a version to come": gradient(version=1),
    "the greatest version": gradient(version=MAX),
    "a step to come": gradient(step=1),
    "a step to come at its version": gradient(version=1, step=1),
    "the greatest step": gradient(version=MAX, step=MAX),
    "a node that does not exist": gradient(index=1),
    "the greatest node": gradient(level=(1 << 32) - 1, index=(1 << 32) - 1),
    "an evaluation that nobody asked for": pb.WorkRequest(evaluation=pb.Evaluation(version=MAX, first=MAX)),
    "an unknown split": pb.WorkRequest(evaluation=pb.Evaluation(split=77)),  # type: ignore[arg-type]
    "initial parameters again": pb.WorkRequest(initial=pb.ParametersChunk(version=9, data=bytes(12))),
    "prepared again": pb.WorkRequest(prepared=PREPARED),
}


def violates(peer: Peer) -> None:
    refused = peer.refusal()
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL_VIOLATION")


def finishes(server: Server, job_id: str, expected: str) -> None:
    """Holds that a job can be worked for, and that another can be created and trained."""
    with stub_of(server) as stub:
        job = train(server, stub.GetJob(training_service_pb2.GetJobRequest(job_id=job_id)).job.spec)
        assert job.result.weights_sha256 == expected
        assert state_of(stub, job_id) in ("QUEUED", "RUNNING")


@pytest.mark.parametrize("first", [None, pb.WorkRequest(), gradient(), pb.WorkRequest(failure=pb.Failure(problem="x"))])
def test_a_stream_begins_with_hello(server: Server, first: pb.WorkRequest | None) -> None:
    with Peer(server.address) as peer:
        peer.send(first) if first else peer.finish()
        violates(peer)


@pytest.mark.parametrize("job_id", ["", "nobody", "../x"])
def test_a_worker_of_no_job_is_sent_away(server: Server, job_id: str) -> None:
    with Peer(server.address) as peer:
        peer.send(pb.WorkRequest(hello=hello(job_id=job_id)))
        assert "there is no job" in peer.receive("goodbye").reason


def test_a_worker_that_is_not_prepared_breaks_nothing_but_its_stream(
    server: Server, stub: TrainingServiceStub, undisturbed: str
) -> None:
    job_id = create(stub)
    for what, message in UNPREPARED.items():
        with Peer(server.address) as peer:
            peer.hello(job_id)
            peer.send(message)
            refused = peer.refusal()
            assert refused.reason == "PROTOCOL_VIOLATION", (what, refused)
    finishes(server, job_id, undisturbed)
    assert train_existing(server, job_id) == undisturbed


def train_existing(server: Server, job_id: str) -> str:
    """Works for a job that exists, and gives the weights that it ends with."""
    from thalweg.workers.worker import work

    work(Endpoint(server.address), job_id, "worker")
    with stub_of(server) as stub:
        return stub.GetJob(training_service_pb2.GetJobRequest(job_id=job_id)).job.result.weights_sha256


def in_a_step(server: Server, job_id: str, then: Callable[[Peer], object]) -> None:
    with Peer(server.address) as peer:
        peer.hello(job_id)
        peer.prepare(PREPARED)
        peer.send(pb.WorkRequest(initial=pb.ParametersChunk(data=INITIAL.tobytes())))
        peer.receive("differentiate")
        then(peer)


@pytest.mark.parametrize("what", PREPARED_ALREADY)
def test_a_message_that_makes_no_sense_ends_the_stream(
    server: Server, stub: TrainingServiceStub, undisturbed: str, what: str
) -> None:
    job_id = create(stub)

    def disturb(peer: Peer) -> None:
        peer.send(PREPARED_ALREADY[what])
        violates(peer)

    in_a_step(server, job_id, disturb)
    finishes(server, job_id, undisturbed)


@pytest.mark.parametrize("what", DROPPED)
def test_a_contribution_that_nobody_waits_for_is_dropped(server: Server, stub: TrainingServiceStub, what: str) -> None:
    job_id = create(stub)

    def disturb(peer: Peer) -> None:
        peer.send(DROPPED[what])
        for version in (0, 1):
            peer.send(gradient(version=version, step=version, data=bytes(12)))
        evaluate: pb.EvaluateTask = peer.receive("evaluate")
        assert (evaluate.version, evaluate.first, evaluate.end) == (2, 0, 4)
        answer = pb.Evaluation(version=2, split=evaluate.split, sums=SUMS)
        peer.send(pb.WorkRequest(evaluation=answer))
        assert "SUCCEEDED" in peer.receive("goodbye").reason

    in_a_step(server, job_id, disturb)


def test_a_second_message_of_a_step_is_dropped(server: Server, stub: TrainingServiceStub) -> None:
    job_id = create(stub)

    def disturb(peer: Peer) -> None:
        peer.send(gradient(data=bytes(12)))
        peer.send(gradient(data=np.full(3, 1e30, np.float32).tobytes()))
        task: pb.DifferentiateTask = peer.receive("differentiate")
        assert task.version == 1
        header, data = stub.DownloadParameters(training_service_pb2.DownloadParametersRequest(job_id=job_id))
        assert header.header.version == 1
        assert data.data == INITIAL.tobytes()

    in_a_step(server, job_id, disturb)


def test_sums_without_samples_end_no_job(server: Server, stub: TrainingServiceStub) -> None:
    job_id = create(stub)

    def disturb(peer: Peer) -> None:
        for version in (0, 1):
            peer.send(gradient(version=version, step=version, data=bytes(12), sums=pb.Sums(loss=6)))
        evaluate: pb.EvaluateTask = peer.receive("evaluate")
        peer.send(pb.WorkRequest(evaluation=pb.Evaluation(version=2, split=evaluate.split)))
        peer.receive("goodbye")

    in_a_step(server, job_id, disturb)
    job = stub.GetJob(training_service_pb2.GetJobRequest(job_id=job_id)).job
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert job.progress.loss == 1.5


@pytest.mark.parametrize(
    "sums", [pb.Sums(loss=float("nan"), samples=4), pb.Sums(loss=float("-inf"), samples=4), pb.Sums(loss=1e308, samples=MAX)]
)
def test_sums_of_any_kind_end_no_server(server: Server, stub: TrainingServiceStub, undisturbed: str, sums: pb.Sums) -> None:
    job_id = create(stub)
    in_a_step(server, job_id, lambda peer: peer.send(gradient(data=bytes(12), sums=sums)))
    assert train(server, make_spec()).result.weights_sha256 == undisturbed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_parameters_that_are_not_finite_are_never_kept(server: Server, stub: TrainingServiceStub, value: float) -> None:
    job_id = create(stub)

    def diverge(peer: Peer) -> None:
        peer.send(gradient(data=np.array([0, value, 0], np.float32).tobytes()))
        assert "FAILED" in peer.receive("goodbye").reason

    in_a_step(server, job_id, diverge)
    for response in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job_id)):
        job = response.event.state_changed.job
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert "NaN or infinite" in job.error
    _, *parts = stub.DownloadParameters(training_service_pb2.DownloadParametersRequest(job_id=job_id))
    assert b"".join(part.data for part in parts) == INITIAL.tobytes()


@pytest.mark.parametrize("shape", [(1 << 60,), (1 << 33, 1 << 33), (MAX,) * 8, (0,)])
def test_a_model_that_no_memory_holds_fails_its_job_alone(
    server: Server, stub: TrainingServiceStub, undisturbed: str, shape: tuple[int, ...]
) -> None:
    job_id = create(stub)
    with Peer(server.address) as peer:
        peer.hello(job_id)
        peer.send(layout(*shape))
        assert "FAILED" in peer.receive("goodbye").reason
    assert train(server, make_spec()).result.weights_sha256 == undisturbed
    assert state_of(stub, job_id) == "FAILED"


def test_a_long_complaint_is_cut(server: Server, stub: TrainingServiceStub) -> None:
    job_id = create(stub)
    with Peer(server.address) as peer:
        peer.send(pb.WorkRequest(hello=hello(job_id=job_id, worker="w" * 1_000_000)))
        peer.send(pb.WorkRequest(failure=pb.Failure(problem="model: " + "x" * 4_000_000, scope=pb.Failure.SCOPE_JOB)))
        peer.receive("goodbye")
    job = stub.GetJob(training_service_pb2.GetJobRequest(job_id=job_id)).job
    assert job.error.startswith("model: xxx")
    assert len(stub.ListJobs(training_service_pb2.ListJobsRequest()).jobs) == 1
    for response in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job_id)):
        assert response.ByteSize() < 10_000


# A gradient that is cut short.
CUT = gradient(data=bytes(100_000)).SerializeToString()[:-1]


@pytest.mark.parametrize(
    "garbage", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\x0a\xff", b"\x0a\x03\x0a\x01\xff", bytes(1000), CUT]
)
def test_bytes_that_are_no_message_end_the_stream(
    server: Server, stub: TrainingServiceStub, undisturbed: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = create(stub)
    for known in (False, True):
        with Peer(server.address) as peer:
            if known:
                peer.hello(job_id)
            peer.send(garbage)
            assert peer.refusal().code is not grpc.StatusCode.OK
    finishes(server, job_id, undisturbed)
    # Tasks that nobody ended are logged when they are collected.
    gc.collect()
    told = [record.message for record in caplog.records if record.levelno > logging.INFO or record.exc_info]
    # A busy machine is no fault of the stream's.
    assert [message for message in told if not message.startswith("the server was unresponsive")] == []


def test_a_message_over_grpcs_limit_is_refused(server: Server, stub: TrainingServiceStub, undisturbed: str) -> None:
    job_id = create(stub)
    with Peer(server.address) as peer:
        peer.hello(job_id)
        peer.send(gradient(data=bytes(4 << 20)))
        assert peer.refusal().code is grpc.StatusCode.RESOURCE_EXHAUSTED
    request = training_service_pb2.CreateJobRequest(spec=make_spec(data={"builtin": "x" * (4 << 20)}))
    assert refusal(lambda: stub.CreateJob(request)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    finishes(server, job_id, undisturbed)


METHODS = [
    f"/{service.full_name}/{method.name}"
    for module in (training_service_pb2, fleet_service_pb2, pb)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_bytes_that_are_no_message_are_refused_by_every_method(server: Server, undisturbed: str) -> None:
    with grpc.insecure_channel(str(server.address)) as channel:
        for method in METHODS:
            call: Any = channel.stream_stream(method, lambda message: message, lambda message: message)
            refused = refusal(lambda call=call: call(iter([b"\xff"]), timeout=30))  # type: ignore[misc]
            assert refused.code not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED), method
    assert train(server, make_spec()).result.weights_sha256 == undisturbed


def attend(address: Address, message: fleet_service_pb2.AttendRequest) -> Callable[[], object]:
    channel = grpc.insecure_channel(str(address))
    return lambda: fleet_service_pb2_grpc.FleetServiceStub(channel).Attend(iter([message]), timeout=30)


def test_a_fleet_of_too_many_slots_is_refused(server: Server, stub: TrainingServiceStub) -> None:
    offer = capacity("f", 1_000_001)
    refused = refusal(attend(server.address, fleet_service_pb2.AttendRequest(capacity=offer)))
    assert (refused.reason, refused.fields) == ("INVALID_ARGUMENT", ["capacity.slots"])
    assert not stub.GetServerInfo(training_service_pb2.GetServerInfoRequest()).fleets
