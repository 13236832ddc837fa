"""Many jobs at once: they wait for places, begin in order of priority, and end with the bits that each has when it runs alone."""

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.end_to_end.cluster import ThreadFleet, running_server, stub_of, train
from tests.end_to_end.peer import DEADLINE
from tests.server.test_training_service import make_spec
from thalweg.contract.states import ENDED
from thalweg.server.process import Server
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

CLIENTS = 5
JOBS_OF_A_CLIENT = 4
PLACES = 2


def spec_of(number: int) -> job_pb2.JobSpec:
    """One of many jobs, no two alike, of five priorities."""
    training = {"epochs": 3, "batch_size": 4, "microbatches": 2, "workers": 1 + number % 3}
    return make_spec(name=f"job{number}", seed=number, priority=number * 7 % 5 - 2, training=training)


class States:
    """The states that jobs enter, in the order in which all of it becomes durable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered: list[tuple[str, job_pb2.JobState.ValueType]] = []
        record = DataFolder.record

        def note(storage: DataFolder, events: Iterable[tuple[str, pb.Event]]) -> None:
            events = list(events)
            record(storage, events)
            for job_id, event in events:
                if event.HasField("state_changed"):
                    self.entered.append((job_id, event.state_changed.job.state))

        monkeypatch.setattr(DataFolder, "record", note)

    @property
    def began(self) -> list[str]:
        return [job_id for job_id, state in self.entered if state == job_pb2.JOB_STATE_RUNNING]

    def most_running(self) -> int:
        running: set[str] = set()
        most = 0
        for job_id, state in self.entered:
            if state == job_pb2.JOB_STATE_RUNNING:
                running.add(job_id)
            elif state in ENDED:
                running.discard(job_id)
            most = max(most, len(running))
        return most


def submit_all(server: Server) -> dict[str, int]:
    """Submits all jobs, each client a few on a connection of its own, all at once. Gives the jobs' numbers by their ids."""
    numbers: dict[str, int] = {}
    together = threading.Barrier(CLIENTS)

    def client(first: int) -> None:
        with stub_of(server) as stub:
            together.wait(DEADLINE)
            for number in range(first, first + JOBS_OF_A_CLIENT):
                numbers[stub.CreateJob(pb.CreateJobRequest(spec=spec_of(number))).job.id] = number

    clients = [threading.Thread(target=client, args=(i * JOBS_OF_A_CLIENT,)) for i in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return numbers


def test_twenty_jobs_of_five_clients_run_two_at_a_time_in_order_of_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = States(monkeypatch)
    with running_server(tmp_path / "shared", max_running_jobs=PLACES) as server, stub_of(server) as stub:
        numbers = submit_all(server)
        assert len(numbers) == CLIENTS * JOBS_OF_A_CLIENT
        accepted = [job.id for job in reversed(stub.ListJobs(pb.ListJobsRequest(page_size=100)).jobs)]
        with ThreadFleet(server.address, slots=4):
            for job_id in accepted:
                for _ in stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=DEADLINE):
                    pass
        ended = {job.id: job for job in stub.ListJobs(pb.ListJobsRequest(page_size=100)).jobs}

    assert [job.state for job in ended.values()] == [job_pb2.JOB_STATE_SUCCEEDED] * len(accepted)
    assert states.most_running() == PLACES
    order = sorted(accepted, key=lambda job_id: -spec_of(numbers[job_id]).priority)
    assert sorted(states.began) == sorted(order)
    for position, job_id in enumerate(states.began):
        # All that are before it have begun, but for those that got their places together with it.
        assert len(set(order[: order.index(job_id)]).difference(states.began[:position])) < PLACES

    with running_server(tmp_path / "alone") as server:
        for job_id, number in numbers.items():
            alone = train(server, spec_of(number))
            assert ended[job_id].result.weights_sha256 == alone.result.weights_sha256
