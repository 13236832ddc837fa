"""What a job makes of workers that fail, are killed, or are not like the others. Fleets and workers are played by hand."""

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, Peer
from tests.server.test_training_service import PREPARED, make_spec
from thalweg.contract.release import PROTOCOL, capacity, hello, release
from thalweg.server.deciding.workers.failures import MAX_REPORTS
from thalweg.server.process import Server
from thalweg.v1 import fleet_service_pb2 as fleets
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as workers
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.fleet_service_pb2_grpc import FleetServiceStub
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

KILLED = fleets.WorkerExited.CAUSE_KILLED
NODE = fleets.WorkerExited.CAUSE_NODE


class Fleet:
    """A fleet's stream, played by hand: `one` and `two` are its nodes."""

    def __init__(self, channel: grpc.Channel, fleet: str, *, allow_code: bool = False) -> None:
        self.id = fleet
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = FleetServiceStub(channel).Attend(iter(self._outbox.get, None), timeout=DEADLINE)
        offer = capacity(fleet, 2, fleet=fleet, nodes=["one", "two"], allow_code=allow_code)
        self._outbox.put(fleets.AttendRequest(capacity=offer))

    def told(self, expected: Callable[[list[fleets.Allotment]], bool]) -> list[fleets.Allotment]:
        """The next allotment that is as expected."""
        for response in self._call:
            if expected(list(response.allotments)):
                return list(response.allotments)
        raise AssertionError("the stream ended")

    def exited(
        self,
        job_id: str,
        problem: str,
        cause: fleets.WorkerExited.Cause.ValueType = KILLED,
        node: str = "one",
        *,
        died: bool = False,
        line: str = "",
    ) -> None:
        """Says that a worker ended."""
        exited = fleets.WorkerExited(job_id=job_id, problem=problem, cause=cause, place=self.place(node), died=died, line=line)
        self._outbox.put(fleets.AttendRequest(worker_exited=exited))

    def place(self, node: str) -> workers.Place:
        """A node of the fleet."""
        return workers.Place(fleet=self.id, node=node, name=f"{node}.lab")

    def leave(self) -> None:
        """Ends the stream."""
        self._outbox.put(None)


@contextmanager
def attending(server: Server, fleet: str, *, allow_code: bool = False) -> Iterator[Fleet]:
    with grpc.insecure_channel(str(server.address)) as channel:
        attends = Fleet(channel, fleet, allow_code=allow_code)
        yield attends
        attends.leave()


@pytest.fixture
def job_id(stub: TrainingServiceStub) -> str:
    return str(stub.CreateJob(pb.CreateJobRequest(spec=make_spec(training={"workers": 2}))).job.id)


def get(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def notices(stub: TrainingServiceStub, job_id: str, most: int) -> list[str]:
    """The first notices of a job, which are waited for."""
    found: list[str] = []
    for response in stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=DEADLINE):
        if response.event.HasField("notice"):
            found.append(response.event.notice.text)
            if len(found) == most:
                break
    return found


def is_given(job_id: str) -> Callable[[list[fleets.Allotment]], bool]:
    return lambda allotments: [each.job_id for each in allotments] == [job_id] and not allotments[0].avoid


def test_workers_that_are_killed_at_every_start_never_fail_a_job(server: Server, stub: TrainingServiceStub, job_id: str) -> None:
    with attending(server, "mill") as fleet:
        fleet.told(is_given(job_id))
        fleet.exited(job_id, "its process died")
        # While one node is left alone, the others may have workers; and then it is tried again.
        (allotment,) = fleet.told(lambda allotments: list(allotments[0].avoid) == ["one"])
        assert allotment.workers == 2
        fleet.told(is_given(job_id))
        for _ in range(2):
            fleet.exited(job_id, "its process died")
            fleet.exited(job_id, "its process died", node="two")
            # Nowhere may anything be started now.
            fleet.told(lambda allotments: not allotments)
            job = get(stub, job_id)
            fleet.told(is_given(job_id))
        assert job.state == job_pb2.JOB_STATE_QUEUED
        assert job.waiting_for == job_pb2.WAITING_FOR_NODE
        assert job.status.startswith(
            "waiting for workers: workers keep being killed before contributing "
            "(on two.lab, 2 times: its process died), and on 1 more node; trying again in "
        )
    first = notices(stub, job_id, 1)[0]
    assert first.startswith("a worker was killed before contributing (on one.lab: its process died)")


def test_a_fleet_fails_no_job_and_says_nothing_of_workers_that_are_none_of_its_own(
    server: Server, stub: TrainingServiceStub, job_id: str
) -> None:
    with attending(server, "mill") as fleet, attending(server, "stranger") as stranger:
        fleet.told(is_given(job_id))
        for cause in (KILLED, NODE):
            for _ in range(10 * MAX_REPORTS):
                stranger.exited(job_id, "made up", cause)
        for _ in range(10 * MAX_REPORTS):
            fleet.exited(job_id, "ImportError: no package", NODE)
        text = notices(stub, job_id, 1)[0]
        assert text == "a worker failed on one.lab: ImportError: no package; the job gets no more workers there for 5 s"
        assert get(stub, job_id).state == job_pb2.JOB_STATE_QUEUED


def test_a_node_on_which_a_worker_fails_keeps_those_that_work(server: Server, stub: TrainingServiceStub, job_id: str) -> None:
    with attending(server, "mill") as fleet, Peer(server.address) as works, Peer(server.address) as fails:
        fleet.told(is_given(job_id))
        works.hello(job_id, fleet.place("one"))
        fails.hello(job_id, fleet.place("one"))
        assert fails.fail("it has too little memory", workers.Failure.SCOPE_NODE) == "it has too little memory"
        (allotment,) = fleet.told(lambda allotments: list(allotments[0].avoid) == ["one"])
        assert allotment.workers == 2
        fleet.exited(job_id, "its process died", node="two")
        (allotment,) = fleet.told(lambda allotments: list(allotments[0].avoid) == ["one", "two"])
        assert allotment.workers == 1


def test_a_job_whose_workers_report_the_same_cause_at_every_start_fails(
    server: Server, stub: TrainingServiceStub, job_id: str
) -> None:
    for _ in range(MAX_REPORTS):
        assert get(stub, job_id).state != job_pb2.JOB_STATE_FAILED
        with Peer(server.address) as peer:
            peer.hello(job_id)
            peer.fail("IndexError: 7", workers.Failure.SCOPE_UNSPECIFIED)
    job = wait_for(lambda: get(stub, job_id) if get(stub, job_id).state == job_pb2.JOB_STATE_FAILED else None)
    assert job.error == (f"{MAX_REPORTS} workers in a row failed before contributing; last error: IndexError: 7")
    assert job.waiting_for == job_pb2.WAITING_FOR_UNSPECIFIED


def test_a_worker_that_disagrees_is_refused_and_its_node_is_left_alone(
    server: Server, stub: TrainingServiceStub, job_id: str
) -> None:
    odd = workers.Prepared()
    odd.CopyFrom(PREPARED)
    odd.train_samples += 1
    with attending(server, "mill") as fleet, Peer(server.address) as first, Peer(server.address) as second:
        fleet.told(is_given(job_id))
        first.hello(job_id, fleet.place("one"))
        first.prepare(PREPARED)
        second.hello(job_id, fleet.place("two"))
        second.send(workers.WorkRequest(prepared=odd))
        refused = second.refusal()
        assert refused.reason == "DISAGREES"
        assert "4 and 0 samples" in refused.message
        fleet.told(lambda allotments: list(allotments[0].avoid) == ["two"])
        assert get(stub, job_id).state == job_pb2.JOB_STATE_RUNNING


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1])
def test_a_worker_of_another_protocol_is_refused_with_both_named(
    server: Server, stub: TrainingServiceStub, job_id: str, protocol: int
) -> None:
    with Peer(server.address) as peer:
        other = hello(job_id=job_id, worker="peer")
        other.protocol, other.release = protocol, "9.9"
        peer.send(workers.WorkRequest(hello=other))
        refused = peer.refusal()
    assert refused.reason == "INCOMPATIBLE"
    both = f"speaks protocol {protocol} (Thalweg 9.9), and the server speaks protocol {PROTOCOL} (Thalweg {release()})"
    assert f"this worker {both}" in refused.message
    assert both in notices(stub, job_id, 1)[0]
    assert get(stub, job_id).state == job_pb2.JOB_STATE_QUEUED


def test_a_fleet_of_another_protocol_is_refused(server: Server) -> None:
    other = capacity("old", 1)
    other.protocol = 0
    with grpc.insecure_channel(str(server.address)) as channel, pytest.raises(grpc.RpcError) as refused:
        next(FleetServiceStub(channel).Attend(iter([fleets.AttendRequest(capacity=other)]), timeout=DEADLINE))
    assert "this fleet speaks protocol 0" in str(refused.value)
